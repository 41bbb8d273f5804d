//! Recipes that are read, recipes that are refused with their place, presets, overrides, the schema.

use super::*;
use lapidary_weight::InputRounding;

const RECIPE: &str = "\
steps:
  - method: gptq
    bits: 3
    group_size: 64
    ignore: lm_head
  - method: rtn
    targets: [\"re:.*down_proj\"]
    bits: 8
    group_size: row
calibration: {samples: 16, precision: f32}
format: native
";

fn refusal(text: &str) -> String {
    Recipe::parse(text).unwrap_err().to_string()
}

#[test]
fn a_recipe_is_complete_and_reads_back() {
    let recipe = Recipe::parse(RECIPE).unwrap();
    assert_eq!(recipe.steps[0].params["bits"], 3);
    assert_eq!(recipe.steps[0].params["dampening_frac"], 0.01, "defaults are filled in");
    assert_eq!(recipe.steps[1].params["group_size"], "row");
    assert_eq!((recipe.calibration.samples, recipe.calibration.seq_len), (16, 512));
    let json = recipe.to_json();
    let again = Recipe::parse(&json.to_string()).unwrap();
    assert_eq!(again.to_json(), json, "what a manifest records is a recipe");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let cases = [
        (
            "steps:\n  - method: gptq\n    bit: 4\n",
            "line 3, column 5: unknown key \"bit\" of a gptq step; did you mean bits?",
        ),
        (
            "steps: []\nformats: native\n",
            "line 2, column 1: unknown key \"formats\" of a recipe; did you mean format?",
        ),
        (
            "steps:\n  - method: gtpq\n",
            "line 2, column 13: there is no method \"gtpq\"; did you mean gptq?",
        ),
        (
            "steps:\n  - method: rtn\n    bits: many\n",
            "line 3, column 11: step rtn: bits: invalid type: string \"many\"",
        ),
        (
            "steps:\n  - method: rtn\n    bits: 9\n",
            "line 3, column 11: step rtn: bits: 9 is not from 2 to 8",
        ),
        (
            "steps:\n  - method: rtn\n    group_size: 0\n",
            "line 3, column 17: step rtn: group_size: 0 is not a group size",
        ),
        (
            "steps:\n  - method: rtn\n    targets: [\"re:(\"]\n",
            "line 3, column 15: targets: \"re:(\" is not a regular expression",
        ),
        ("calibration: {samples: 0}\nsteps: []\n", "line 1, column 24: calibration.samples is 0"),
        (
            "calibration: {sample: 1}\nsteps: []\n",
            "unknown key \"sample\" of calibration; did you mean samples?",
        ),
        ("steps: []\nformat: onnx\n", "line 2, column 9: there is no format \"onnx\""),
        ("[]\n", "a recipe is a map with the key steps"),
        ("steps: {method: rtn}\n", "a recipe needs a list of steps"),
        (
            "steps:\n  - method: gptq\n    static_groups: false\n",
            "act_order with groups needs static_groups",
        ),
    ];
    for (text, expected) in cases {
        let refusal = refusal(text);
        assert!(refusal.contains(expected), "{text}\ngot: {refusal}");
    }
}

#[test]
fn activations_are_of_steps_that_encode() {
    let read = |activations: &str| {
        let step = format!("steps:\n  - method: rtn\n    activations: {activations}\n");
        Recipe::parse(&step).map_err(|error| error.to_string())
    };
    let given = |activations: &str| read(activations).unwrap().steps[0].activations;
    assert_eq!(given("int8"), Some(Activations::Rounded(InputRounding::INT8)));
    assert_eq!(given("fp8"), Some(Activations::Rounded(InputRounding::FP8)));
    assert_eq!(given("none"), Some(Activations::Floats));
    assert_eq!(given("{type: int, bits: 8, strategy: token}"), given("int8"));
    let group = "{type: float, strategy: group, group_size: 128}";
    let Some(Activations::Rounded(rounding)) = given(group) else { panic!("of groups") };
    assert_eq!(rounding.to_string(), "fp8 per 128 channels");
    for activations in ["int8", "fp8", "none", group] {
        let json = read(activations).unwrap().to_json();
        let again = Recipe::parse(&json.to_string()).unwrap();
        assert_eq!(again.to_json(), json);
        assert_eq!(again.steps[0].activations, given(activations));
    }
    let place = "line 3, column 18: activations: ";
    for (wrong, reason) in [
        ("int7", "\"int7\" is none that it knows; use int8, fp8, none, or a map"),
        ("[int8, fp8]", "is none that it knows"),
        ("{type: int, bits: 9}", "integers of 9 bits"),
        ("{type: int, strategy: group}", "needs a group_size"),
        ("{typ: int}", "unknown field `typ`"),
    ] {
        let error = read(wrong).unwrap_err();
        assert!(error.starts_with(place) && error.contains(reason), "{error}");
    }
    let awq = refusal("steps: [{method: awq, activations: int8}]");
    assert!(awq.contains("unknown key \"activations\" of a awq step"), "{awq}");
    let text = "steps: [{method: awq}, {method: gptq, activations: fp8}]";
    let mut document = parse_document(text).unwrap();
    let activations = Some("int8".to_owned());
    Overrides { activations, ..Overrides::default() }.apply(&mut document).unwrap();
    let steps = Recipe::from_document(&document).unwrap().steps;
    assert_eq!((steps[0].activations, steps[1].activations), (None, given("int8")));
}

#[test]
fn equal_names_are_numbered() {
    let recipe =
        Recipe::parse("steps: [{method: rtn}, {method: rtn}, {method: rtn, name: x}]").unwrap();
    let names: Vec<&str> = recipe.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["rtn", "rtn-2", "x"]);
}

#[test]
fn every_preset_is_a_recipe_of_its_name() {
    let (blocks, others): (Vec<Preset>, Vec<Preset>) =
        presets().into_iter().partition(|preset| preset.name.starts_with(['Q', 'I']));
    let (best, schemes): (Vec<Preset>, Vec<Preset>) =
        others.into_iter().partition(|preset| preset.name.starts_with("best-"));
    let (floats, schemes): (Vec<Preset>, Vec<Preset>) =
        schemes.into_iter().partition(|preset| preset.name.contains("FP"));
    let (pruned, schemes): (Vec<Preset>, Vec<Preset>) =
        schemes.into_iter().partition(|preset| preset.name.starts_with("sparse-"));
    let counts = [&blocks, &best, &floats, &pruned, &schemes].map(Vec::len);
    assert_eq!(counts, [9, 5, 6, 3, 26]);
    for preset in pruned {
        assert_eq!(preset.recipe().unwrap().steps[0].method.id, "sparsegpt", "{}", preset.name);
    }
    for preset in blocks {
        let recipe = preset.recipe().unwrap();
        let grid = recipe.steps[0].params["grid"].as_str().unwrap().to_uppercase();
        assert!(preset.name.starts_with(&grid), "{}", preset.name);
        assert_eq!(recipe.format, "gguf");
    }
    for preset in floats {
        let steps = preset.recipe().unwrap().steps;
        let method = steps[0].method.id;
        assert!(preset.name.starts_with(&method.to_uppercase()), "{}", preset.name);
    }
    for preset in best {
        let recipe = preset.recipe().unwrap();
        let bits = match recipe.budget {
            Some(Budget::BitsPerWeight(bits)) => bits,
            _ => recipe.steps[1].params["bits"].as_f64().unwrap(),
        };
        assert_eq!(bits.floor().to_string(), preset.name[5..6], "{}", preset.name);
    }
    for preset in schemes {
        let recipe = preset.recipe().unwrap();
        let rounded = preset.name[2..].starts_with("A8");
        let (encoder, before) = recipe.steps.split_last().unwrap();
        let before: Vec<&str> = before.iter().map(|step| step.method.id).collect();
        assert_eq!(before, if rounded { &["smoothquant"][..] } else { &[] }, "{}", preset.name);
        let params = &encoder.params;
        assert_eq!(params["bits"].to_string(), preset.name[1..2]);
        assert_eq!(params["symmetric"], !preset.name.contains("ASYM"));
        let method = if preset.name.ends_with("rtn") { "rtn" } else { "gptq" };
        assert_eq!(encoder.method.id, method);
        let int8 = Activations::Rounded(InputRounding::INT8);
        assert_eq!(encoder.activations, Some(int8).filter(|_| rounded), "{}", preset.name);
    }
    assert_eq!(preset("w4a16").unwrap().name, "W4A16");
    let error = preset("W5A16").unwrap_err().to_string();
    assert!(error.contains("did you mean W"), "{error}");
}

#[test]
fn overrides_reach_the_steps_that_take_them() {
    let mut document = preset("W4A16").unwrap().document().unwrap();
    let overrides = Overrides {
        bits: Some(3.0),
        group_size: Some("row".to_owned()),
        symmetric: Some(false),
        samples: Some(7),
        format: Some("native".to_owned()),
        set: vec!["gptq.dampening_frac=0.05".to_owned(), "calibration.precision=f32".to_owned()],
        ..Overrides::default()
    };
    overrides.apply(&mut document).unwrap();
    let recipe = Recipe::from_document(&document).unwrap();
    let params = &recipe.steps[0].params;
    assert_eq!((&params["bits"], &params["group_size"]), (&json!(3), &json!("row")));
    assert_eq!((&params["symmetric"], &params["dampening_frac"]), (&json!(false), &json!(0.05)));
    assert_eq!((recipe.calibration.samples, recipe.format.as_str()), (7, "native"));
}

#[test]
fn overrides_that_reach_nothing_are_refused() {
    let refuse = |set: &str| {
        let mut document = preset("W4A16-rtn").unwrap().document().unwrap();
        let overrides = Overrides { set: vec![set.to_owned()], ..Overrides::default() };
        let applied = overrides.apply(&mut document);
        applied.and_then(|()| Recipe::from_document(&document).map(|_| ())).unwrap_err().to_string()
    };
    assert!(refuse("gptq.bits=3").contains("no step is named gptq"));
    assert!(refuse("bits").contains("step.key=value"));
    assert!(refuse("rtn.steps=3").contains("unknown key \"steps\" of a rtn step"));
    assert!(refuse("*.steps=3").contains("no step takes steps"));
    assert!(refuse("calibration.rows=3").contains("unknown key \"rows\""));
}

#[test]
fn the_schema_describes_every_method_and_nothing_stays_referred_to() {
    let schema = schema();
    let steps = schema["properties"]["steps"]["items"]["oneOf"].as_array().unwrap();
    let titles: Vec<&str> = steps.iter().filter_map(|step| step["title"].as_str()).collect();
    assert_eq!(titles, [method_ids(), vec!["one_of"]].concat());
    assert!(!schema.to_string().contains("$ref"), "{schema}");
    for step in steps.iter().filter(|step| step["title"] != "one_of") {
        let properties = step["properties"].as_object().unwrap();
        // What keeps layers as they are has nothing to be set.
        let has_parameters = properties.keys().any(|key| !STEP_KEYS.contains(&key.as_str()));
        assert_eq!(has_parameters, step["title"] != "keep", "{}", step["title"]);
        for (key, property) in properties {
            let is_described = property["description"].is_string() || key == "method";
            assert!(is_described, "{}: {key}", step["title"]);
        }
    }
}
