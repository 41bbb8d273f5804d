//! The three protocols, cut and scored by hand.

use crate::support::{Model, close, ids, model, nll, run, text, tokenizer};
use lapidary_eval::{EvalError, Evaluation, Protocol, evaluate};
use lapidary_model::Precision;
use std::sync::atomic::AtomicBool;

/// 2048 tokens a window, of which all but the first are predicted.
#[test]
fn windows_predict_2047_tokens_each() {
    let (model, text) = (model("llama-untied"), text(2 * 2048 + 700, 1));
    for begins in [false, true] {
        // A token that begins every text is none of the stream's.
        let tokenizer = tokenizer(begins);
        let report = run(&model, None, Protocol::Windows, &tokenizer, &text, None).unwrap();
        assert_eq!((report.windows, report.length, report.scored.tokens), (2, 2048, 2 * 2047));
        let tokens = ids(&text);
        let sum: f64 = tokens
            .chunks_exact(2048)
            .map(|window| nll(&model, &window[..2047], 0, &window[1..]))
            .sum();
        close(report.scored.perplexity, (sum / (2.0 * 2047.0)).exp());
        assert_eq!((report.scored.word_perplexity, report.scored.byte_perplexity), (None, None));
        assert_eq!(report.against, None);
        let first = run(&model, None, Protocol::Windows, &tokenizer, &text, Some(1)).unwrap();
        assert_eq!((first.windows, first.scored.tokens), (1, 2047));
        let sum = nll(&model, &tokens[..2047], 0, &tokens[1..2048]);
        close(first.scored.perplexity, (sum / 2047.0).exp());
    }
}

/// 512 tokens a chunk, of which those after the first half are predicted: 255.
#[test]
fn llama_cpp_scores_the_second_half() {
    let (model, text) = (model("llama-tied"), text(3 * 512 + 100, 2));
    for begins in [false, true] {
        let tokenizer = tokenizer(begins);
        let report = run(&model, None, Protocol::LlamaCpp, &tokenizer, &text, None).unwrap();
        assert_eq!((report.windows, report.length, report.scored.tokens), (3, 512, 3 * 255));
        let mut tokens = if begins { vec![1] } else { vec![] };
        tokens.extend(ids(&text));
        let mut sum = 0.0;
        for chunk in tokens.chunks_exact_mut(512) {
            if begins {
                chunk[0] = 1;
            }
            sum += nll(&model, &chunk[..511], 256, &chunk[257..]);
        }
        close(report.scored.perplexity, (sum / (3.0 * 255.0)).exp());
    }
}

const PAGE: &str = " = Robert < unk > = \n \n Robert 's role ( in 2 @,@ 000 , at 3 @.@ 5 ° C ) was \
    well @-@ known ; \" he said \" : yes ! No ? { a b } [ c ] . \n = = Career = = \n The boys ' \
    club ' s N th , \n = = = 2000 = = = \n x ( y";

/// What lm-evaluation-harness's `wikitext_detokenizer` makes of it.
const DETOKENIZED: &str = " = Robert < unk > =\n\nRobert's role (in 2,000, at 3.5°C) was \
    well-known; \"he said\": yes! No? {a b} [c].\n== Career ==\nThe boys' club ' s 1 th,\n=== 2000 \
    ===\nx ( y";

/// The harness's rolling windows: every token predicted once, from at most 2048 before it.
fn rolling(model: &Model, tokens: &[u32]) -> f64 {
    let (mut sum, mut done) = (0.0, 0);
    while done < tokens.len() {
        let end = (done + 2048).min(tokens.len());
        let from = end.saturating_sub(2048);
        let before = if from == 0 { 1 } else { tokens[from - 1] };
        let mut seen = vec![before];
        seen.extend(&tokens[from..end - 1]);
        sum += nll(model, &seen, done - from, &tokens[done..end]);
        done = end;
    }
    sum
}

#[test]
fn words_are_counted_on_the_raw_page_and_predicted_on_the_detokenized_one() {
    let model = model("mistral");
    // The second page is longer than a window. It stays as it is: nothing in it is detokenized.
    let long: String = (0..3000).map(|i| ['a', 'b', 'c', 'd'][(i * i / 3) % 4]).collect();
    let second = format!(" = B = \n{long} {long}\n");
    let text = format!("{PAGE}\n{second}");
    let words = |page: &str| page.split(char::is_whitespace).filter(|w| !w.is_empty()).count();
    for begins in [false, true] {
        let report = run(&model, None, Protocol::Word, &tokenizer(begins), &text, None).unwrap();
        let pages = [DETOKENIZED.to_owned(), format!(" = B =\n{long} {long}\n")];
        let (mut sum, mut predictions) = (0.0, 0);
        for page in &pages {
            let mut tokens = if begins { vec![1] } else { vec![] };
            tokens.extend(ids(page));
            predictions += tokens.len() as u64;
            sum += rolling(&model, &tokens);
        }
        assert_eq!(report.scored.tokens, predictions);
        close(report.scored.perplexity, (sum / predictions as f64).exp());
        // As Python's `re.split` counts: the empty words before and after the spaces at the ends.
        let counted = (1 + words(PAGE)) + (1 + words(&second) + 1);
        close(report.scored.word_perplexity.unwrap(), (sum / counted as f64).exp());
        let bytes = PAGE.len() + second.len();
        close(report.scored.byte_perplexity.unwrap(), (sum / bytes as f64).exp());
        // The limit is one of pages.
        let one = run(&model, None, Protocol::Word, &tokenizer(begins), &text, Some(1)).unwrap();
        assert_eq!(one.scored.tokens, ids(DETOKENIZED).len() as u64 + u64::from(begins));
    }
}

/// Python's text mode reads CRLF as LF, and so the first and the third protocol; llama.cpp reads
/// the bytes.
#[test]
fn line_ends_are_read_as_each_protocol_reads_them() {
    let model = model("llama-untied");
    let unix = text(2100, 3).replace('\n', "ab\n");
    let windows = unix.replace('\n', "\r\n");
    assert_ne!(unix, windows);
    let tokenizer = tokenizer(false);
    for protocol in [Protocol::Windows, Protocol::Word] {
        let of = |text: &str| run(&model, None, protocol, &tokenizer, text, None).unwrap();
        assert_eq!(of(&windows), of(&unix), "{}", protocol.name());
    }
    let report = run(&model, None, Protocol::LlamaCpp, &tokenizer, &windows, Some(1)).unwrap();
    let tokens = ids(&windows);
    let sum = nll(&model, &tokens[..511], 256, &tokens[257..512]);
    close(report.scored.perplexity, (sum / 255.0).exp());
}

#[test]
fn a_text_shorter_than_a_window_is_refused() {
    let (model, tokenizer) = (model("llama-untied"), tokenizer(false));
    for (protocol, length) in [(Protocol::Windows, 2048), (Protocol::LlamaCpp, 512)] {
        for characters in [0, 1, length - 1] {
            let text = text(characters, 4);
            let error = run(&model, None, protocol, &tokenizer, &text, None).unwrap_err();
            let expected = format!("the text is too short for one window of {length} tokens");
            assert_eq!(error.to_string(), expected);
        }
        assert!(run(&model, None, protocol, &tokenizer, &text(length, 4), None).is_ok());
    }
    for blank in ["", " \n \n"] {
        let error = run(&model, None, Protocol::Word, &tokenizer, blank, None).unwrap_err();
        assert!(error.to_string().contains("too short"), "{error}");
    }
    let none = run(&model, None, Protocol::Windows, &tokenizer, &text(5000, 4), Some(0));
    assert!(none.is_err(), "no window is no perplexity");
}

/// The loss whose gradients are taken is what the evaluation takes the exponential of.
#[test]
fn the_loss_of_gradients_is_that_of_the_evaluation() {
    use lapidary_model::gradient::{Backward, NextToken};
    let (tokenizer, text) = (tokenizer(false), text(700, 6));
    for name in ["llama-untied", "mistral-sliding", "qwen3"] {
        let model = model(name);
        let evaluation = Evaluation {
            model: (&model.source, &model.spec),
            reference: None,
            reference_limit: None,
            tokenizer: &tokenizer,
            text: &text,
            protocol: Protocol::Windows,
            limit: None,
            // Longer than what the head does at a time.
            context: Some(300),
            precision: Precision::F32,
            stop: &AtomicBool::new(false),
        };
        let report = evaluate(&evaluation, &mut |_, _| {}).unwrap();
        let rows: Vec<Vec<u32>> = ids(&text).chunks_exact(300).map(<[u32]>::to_vec).collect();
        let loss = NextToken::new(&model.spec, &model.source).unwrap();
        let losses = Backward::new(&model.spec, &model.source).losses(&rows, &loss).unwrap();
        assert_eq!(losses.len(), 2);
        close(losses.iter().sum::<f64>() / 2.0, report.scored.perplexity.ln());
    }
}

#[test]
fn a_shorter_context_makes_shorter_windows() {
    let (model, tokenizer, text) = (model("llama-untied"), tokenizer(false), text(1000, 5));
    let stop = AtomicBool::new(false);
    let evaluation = |context| Evaluation {
        model: (&model.source, &model.spec),
        reference: None,
        reference_limit: None,
        tokenizer: &tokenizer,
        text: &text,
        protocol: Protocol::Windows,
        limit: None,
        context: Some(context),
        precision: Precision::F32,
        stop: &stop,
    };
    let report = evaluate(&evaluation(64), &mut |_, _| {}).unwrap();
    assert_eq!((report.length, report.windows, report.scored.tokens), (64, 15, 15 * 63));
    // No context leaves anything to predict below two tokens; that is said, not divided by.
    for context in [0, 1] {
        match evaluate(&evaluation(context), &mut |_, _| {}) {
            Err(EvalError::Unusable(_)) => {}
            other => panic!("a context of {context}: {other:?}"),
        }
    }
}

#[test]
fn progress_counts_every_window() {
    let (model, tokenizer, text) = (model("llama-untied"), tokenizer(false), text(600 * 64, 6));
    let (going, stopped) = (AtomicBool::new(false), AtomicBool::new(true));
    let evaluation = Evaluation {
        model: (&model.source, &model.spec),
        reference: None,
        reference_limit: None,
        tokenizer: &tokenizer,
        text: &text,
        protocol: Protocol::Windows,
        limit: None,
        context: Some(64),
        precision: Precision::F32,
        stop: &going,
    };
    let mut seen = vec![];
    let report = evaluate(&evaluation, &mut |done, all| seen.push((done, all))).unwrap();
    assert!(seen.len() > 1 && seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "{seen:?}");
    assert_eq!(seen.last(), Some(&(report.windows, report.windows)));
    let stopped = Evaluation { stop: &stopped, ..evaluation };
    assert!(matches!(evaluate(&stopped, &mut |_, _| {}), Err(EvalError::Interrupted)));
}

#[test]
fn an_encoder_has_no_perplexity() {
    for name in ["bert-model", "bert-masked-lm"] {
        let model = model(name);
        let error = run(&model, None, Protocol::Windows, &tokenizer(false), &text(3000, 7), None);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("predict the next token"), "{error}");
    }
}
