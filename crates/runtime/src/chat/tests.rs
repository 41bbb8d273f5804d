//! Against `apply_chat_template` of transformers, and templates that mean harm.

use super::*;
use proptest::prelude::*;
use std::path::Path;
use std::time::Duration;

fn template(text: &str) -> Result<ChatTemplate, RuntimeError> {
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let special = special.map(|(name, token)| (name.to_owned(), token.to_owned()));
    ChatTemplate::new(text.to_owned(), BTreeMap::from(special))
}

fn render(text: &str) -> Result<String, RuntimeError> {
    template(text)?.render(&Chat::default(), UNIX_EPOCH)
}

#[test]
fn renders_what_transformers_renders() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/chat");
    let golden = std::fs::read(folder.join("cases.json")).unwrap();
    let golden: Json = serde_json::from_slice(&golden).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(golden["now"].as_u64().unwrap());
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 200);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let mut variables = case["variables"].as_object().unwrap().clone();
        let chat = Chat {
            messages: case["messages"].as_array().unwrap().clone(),
            tools: variables.remove("tools").map(|tools| tools.as_array().unwrap().clone()),
            add_generation_prompt: variables.remove("add_generation_prompt").unwrap() == true,
            variables,
        };
        let rendered = template(&text).unwrap().render(&chat, now);
        let what = format!("{name}, chat {}", case["chat"]);
        match case.get("text") {
            Some(expected) => assert_eq!(rendered.unwrap(), *expected, "{what}"),
            None => {
                let ours = rendered.expect_err(&what).to_string();
                let theirs = case["error"].as_str().unwrap();
                // The template's own words are kept; those of the interpreters differ.
                if theirs.starts_with("Roles") {
                    assert_eq!(ours, format!("chat template: {theirs}"));
                }
            }
        }
    }
}

#[test]
fn templates_have_no_files_and_no_end_of_steps() {
    for text in [
        "{% include '/etc/passwd' %}",
        "{% extends 'x' %}",
        "{% import 'x' as x %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ [] * 1000000000000 }}{{ 'x' * 1000000000000 }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content }}",
        "{% unknown %}",
        "{{ 'unclosed",
        "{{ missing | tojson }}",
    ] {
        assert!(matches!(render(text), Err(RuntimeError::Template(_))), "{text}");
    }
    assert!(template(&"x".repeat(LONGEST_TEMPLATE + 1)).is_err());
    let steps = render("{% for i in range(9999999) %}x{% endfor %}").unwrap_err().to_string();
    assert!(!steps.is_empty());
}

#[test]
fn the_marks_of_training_are_left_out() {
    let text = "a\n  {%- generation -%}  b  {%+ endgeneration %}\nc {% generationx %}";
    assert_eq!(plain(text), "a\n  {%- if true -%}  b  {%+ endif %}\nc {% generationx %}");
    assert_eq!(plain("{% generation"), "{% if true");
}

proptest! {
    /// No template and no message makes it panic.
    #[test]
    fn nothing_panics(
        pieces in prop::collection::vec(
            prop_oneof![
                Just("{{".to_owned()), Just("}}".to_owned()), Just("{%".to_owned()),
                Just("%}".to_owned()), Just("{% generation %}".to_owned()),
                Just(" messages".to_owned()), Just("[::-1]".to_owned()), Just("|tojson".to_owned()),
                Just(" for m in messages ".to_owned()), Just(" endfor ".to_owned()),
                Just("strftime_now('%Q%-')".to_owned()), any::<String>(),
            ],
            0..12,
        ),
        content in any::<String>(),
    ) {
        if let Ok(template) = template(&pieces.concat()) {
            let message = serde_json::json!({"role": "user", "content": content});
            let chat = Chat { messages: vec![message], ..Chat::default() };
            let _ = template.render(&chat, SystemTime::now());
        }
    }
}
