//! Recipes that leave something open, and the budget that decides it.
//!
//! ```yaml
//! steps:
//!   - method: gptq
//!     bits: [2, 3, 4, 5, 6, 8]     # each value of a list is a candidate,
//!     group_size: [64, 128]        # of several lists each combination
//! budget: {bpw: 3.25}              # or {size: 80MB}, {max_kl: 0.05}, {parameters: 100M}, {speedup: 2}
//! ```
//!
//! A step may also be `one_of:` several steps, or lists of steps that go together. A budget without
//! anything open opens the bits of the first step that has them.

use super::{Content, Field, Node, Place};
use super::{RecipeError, STEP_KEYS, Step, check_known, known_keys, method_named};
use lapidary_methods::Entry;
use serde_json::{Value, json};

/// What a search has to keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Bits stored for each weight of the compressed layers, at the most.
    BitsPerWeight(f64),
    /// Bytes of the weight files, at the most.
    Size(u64),
    /// Divergence from the uncompressed model, in nats a token, at the most.
    Divergence(f64),
    /// Parameters of the model that are not pruned, at the most.
    Parameters(u64),
    /// How many times as fast as the uncompressed model it is to write tokens, at the least: by the
    /// bytes of weights that a token reads.
    Speedup(f64),
}

/// As people read it.
impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BitsPerWeight(bits) => write!(f, "{bits} bits a weight"),
            Self::Size(bytes) => write!(f, "weight files of {:.1} MB", *bytes as f64 / 1e6),
            Self::Divergence(nats) => write!(f, "a divergence of {nats}"),
            Self::Parameters(count) => write!(f, "{:.2} million parameters", *count as f64 / 1e6),
            Self::Speedup(times) => write!(f, "tokens written {times} times as fast"),
        }
    }
}

/// Keys of a budget.
const BUDGET_KEYS: [&str; 5] = ["bpw", "size", "max_kl", "parameters", "speedup"];

/// Most candidates of a recipe: each is tried on every layer.
const MOST: usize = 256;

/// Bits that a budget opens by itself.
const BITS: std::ops::RangeInclusive<u8> = 1..=8;

impl Budget {
    /// As it stands in a recipe.
    pub fn to_json(self) -> Value {
        match self {
            Self::BitsPerWeight(bits) => json!({ "bpw": bits }),
            Self::Size(bytes) => json!({ "size": bytes }),
            Self::Divergence(nats) => json!({ "max_kl": nats }),
            Self::Parameters(count) => json!({ "parameters": count }),
            Self::Speedup(times) => json!({ "speedup": times }),
        }
    }

    /// The budget of a recipe.
    pub(super) fn read(document: &Node) -> Result<Option<Self>, RecipeError> {
        let Some(field) = document.field("budget") else { return Ok(None) };
        let node = &field.node;
        for field in node.fields().unwrap_or_default() {
            check_known(field, "of a budget", &BUDGET_KEYS)?;
        }
        let [Field { key, node, .. }] = node.fields().unwrap_or_default() else {
            let what = "budget is one of bpw, size, max_kl, parameters and speedup, for instance \
                        {bpw: 3.25}";
            return Err(RecipeError::new(node.place, what));
        };
        let value = node.to_json();
        let wrong =
            |what: &str| RecipeError::new(node.place, format!("budget.{key}: {value} is {what}"));
        let counted = |parse: fn(&str) -> Result<u64, String>| match &value {
            Value::String(text) => parse(text).ok(),
            number => number.as_u64(),
        };
        if key == "size" {
            let size = counted(parse_bytes);
            let size = size.ok_or_else(|| wrong("not a size; write for instance 80MB"))?;
            return Ok(Some(Self::Size(size)));
        }
        if key == "parameters" {
            let count = counted(parse_count);
            let count = count.ok_or_else(|| wrong("not a number; write for instance 100M"))?;
            return Ok(Some(Self::Parameters(count)));
        }
        let number = value.as_f64().filter(|number| *number > 0.0);
        let number = number.ok_or_else(|| wrong("not a positive number"))?;
        Ok(Some(match key.as_str() {
            "bpw" => Self::BitsPerWeight(number),
            "speedup" => Self::Speedup(number),
            _ => Self::Divergence(number),
        }))
    }
}

/// A number of parameters such as `100M`, `1.5B` or `20000`.
///
/// # Errors
/// When it is none, as it is shown to the user.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of parameters; write for instance 100M");
    let units = [("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)];
    let upper = text.trim().to_ascii_uppercase();
    let with = |(unit, factor): &(&str, f64)| Some((upper.strip_suffix(unit)?.to_owned(), *factor));
    let (number, factor) = units.iter().find_map(with).unwrap_or_else(|| (upper.clone(), 1.0));
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    match number > 0.0 && number * factor < 1e18 {
        true => Ok((number * factor).round() as u64),
        false => Err(wrong()),
    }
}

/// A size such as `8GB`, `500MiB` or a number of bytes.
///
/// # Errors
/// When it is none, as it is shown to the user.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        unit => return Err(format!("{unit:?} is not a unit; use MB, GB, MiB or GiB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor < 1e18 => Ok((number * factor) as u64),
        _ => Err(format!("{text:?} is not a size; write for instance 8GB")),
    }
}

/// Every way to fill in what some steps leave open: one, where they leave nothing open.
pub(super) fn expand(steps: &[Node]) -> Result<Vec<Vec<Node>>, RecipeError> {
    let mut ways: Vec<Vec<Node>> = vec![vec![]];
    for step in steps {
        let alternatives = alternatives(step)?;
        if ways.len() * alternatives.len() > MOST {
            let what = format!("the steps up to here have more than {MOST} candidates");
            return Err(RecipeError::new(step.place, what));
        }
        let extended = |way: &Vec<Node>| -> Vec<Vec<Node>> {
            alternatives.iter().map(|other| [way.as_slice(), other].concat()).collect()
        };
        ways = ways.iter().flat_map(extended).collect();
    }
    Ok(ways)
}

/// What one step may become.
fn alternatives(step: &Node) -> Result<Vec<Vec<Node>>, RecipeError> {
    let Some(one_of) = step.field("one_of") else {
        return Ok(fill_in(step)?.into_iter().map(|step| vec![step]).collect());
    };
    for field in step.fields().unwrap_or_default() {
        check_known(field, "beside one_of", &["one_of"])?;
    }
    let Content::List(items) = &one_of.node.content else {
        return Err(RecipeError::new(one_of.place, "one_of is a list of steps"));
    };
    let mut all = vec![];
    for item in items {
        match &item.content {
            Content::List(steps) => all.extend(expand(steps)?),
            _ => all.extend(expand(std::slice::from_ref(item))?),
        }
    }
    match all.is_empty() {
        true => Err(RecipeError::new(one_of.place, "one_of needs a step")),
        false => Ok(all),
    }
}

/// A step with each combination of the values that its parameters list.
fn fill_in(step: &Node) -> Result<Vec<Node>, RecipeError> {
    let mut ways = vec![step.clone()];
    let method = step.field("method").map(|field| method_named(&field.node)).transpose()?;
    for field in step.fields().unwrap_or_default() {
        let Content::List(values) = &field.node.content else { continue };
        let is_parameter = !STEP_KEYS.contains(&field.key.as_str());
        if !is_parameter || method.is_none_or(|method| is_list(method, &field.key)) {
            continue;
        }
        if values.is_empty() {
            let what = format!("{} has no value", field.key);
            return Err(RecipeError::new(field.place, what));
        }
        if ways.len() * values.len() > MOST {
            let what = format!("the step has more than {MOST} candidates");
            return Err(RecipeError::new(field.place, what));
        }
        let with_each = |way: &Node| -> Vec<Node> {
            let with = |value: &Node| {
                let mut way = way.clone();
                way.set(&field.key, value.clone());
                way
            };
            values.iter().map(with).collect()
        };
        ways = ways.iter().flat_map(with_each).collect();
    }
    Ok(ways)
}

/// Whether a list is what the parameter itself holds.
fn is_list(method: &Entry, key: &str) -> bool {
    let schema = (method.schema)();
    let kind = schema.get("properties").and_then(|properties| properties.get(key)?.get("type"));
    kind.is_some_and(|kind| kind.to_string().contains("\"array\""))
}

/// Opens the bits of the first step that has them, together with those of the steps that go to the
/// same layers.
pub(super) fn open_bits(document: &mut Node, budget: Budget) -> Result<(), RecipeError> {
    let Some(field) = document.field("steps") else { return Ok(()) };
    let place = field.place;
    if let Budget::Parameters(_) = budget {
        let what = "a budget of parameters has nothing to choose from; list what may be left out, for \
                    instance layers.drop=[0, 2, 4] and minitron.neurons=[0, 0.1, 0.2], or the \
                    sparsity of a step that prunes";
        return Err(RecipeError::new(place, what));
    }
    let Content::List(steps) = &field.node.content else { return Ok(()) };
    let targets = |step: &Node| {
        ["targets", "ignore", "layers"].map(|key| step.field(key).map(|field| field.node.to_json()))
    };
    let has_bits = |step: &&Node| -> bool {
        let method = step.field("method").and_then(|field| method_named(&field.node).ok());
        method.is_some_and(|method| known_keys(method).iter().any(|key| key == "bits"))
    };
    let Some(first) = steps.iter().find(has_bits) else {
        let what = "a budget has nothing to choose from: no step has bits; list the values of some \
                    parameter, or steps under one_of";
        return Err(RecipeError::new(place, what));
    };
    let opened = |step: &&Node| has_bits(step) && targets(step) == targets(first);
    let count = steps.iter().filter(opened).count();
    let with_bits = |bits: u8| -> Vec<Node> {
        let set = |step: &Node| {
            let mut step = step.clone();
            if opened(&&step) {
                step.set("bits", Node::given(json!(bits)));
            }
            step
        };
        steps.iter().map(set).collect()
    };
    let allowed = |bits: &u8| with_bits(*bits).iter().all(|step| Step::read(step).is_ok());
    let bits: Vec<u8> = BITS.filter(allowed).collect();
    let opened_steps = if count == 1 {
        let list = |step: &Node| {
            let mut step = step.clone();
            if opened(&&step) {
                step.set("bits", Node::given(json!(bits)));
            }
            step
        };
        steps.iter().map(list).collect()
    } else {
        let ways = bits.iter().map(|bits| list_of(with_bits(*bits))).collect();
        let mut step = Node::given(json!({}));
        step.set("one_of", list_of(ways));
        vec![step]
    };
    if bits.is_empty() {
        // The step is wrong whatever its bits: say why.
        steps.iter().try_for_each(|step| Step::read(step).map(|_| ()))?;
    }
    document.set("steps", list_of(opened_steps));
    Ok(())
}

fn list_of(nodes: Vec<Node>) -> Node {
    Node { place: Place::default(), content: Content::List(nodes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Overrides, Recipe, preset};

    fn candidates(text: &str) -> Vec<String> {
        let recipe = Recipe::parse(text).unwrap();
        let step = |step: &Step| {
            let (bits, group) = (&step.params["bits"], &step.params["group_size"]);
            format!("{} {bits} {group}", step.method.id)
        };
        let way = |steps: &Vec<Step>| steps.iter().map(step).collect::<Vec<_>>().join(", ");
        recipe.candidates.iter().map(way).collect()
    }

    #[test]
    fn lists_and_alternatives_are_candidates() {
        let text = "steps: [{method: gptq, bits: [2, 3], group_size: [32, row]}]\n\
                    budget: {bpw: 3}";
        let expected = ["gptq 2 32", "gptq 2 \"row\"", "gptq 3 32", "gptq 3 \"row\""];
        assert_eq!(candidates(text), expected);
        let text = "steps:\n\
                    - one_of:\n  - {method: rtn, bits: 8}\n  - {method: gptq, bits: [2, 3]}\n\
                    - {method: rtn, bits: 4, targets: lm_head}\n\
                    budget: {size: 1MB}";
        let expected = ["rtn 8 128, rtn 4 128", "gptq 2 128, rtn 4 128", "gptq 3 128, rtn 4 128"];
        assert_eq!(candidates(text), expected);
    }

    #[test]
    fn a_budget_opens_the_bits() {
        let mut document = preset("W4A16").unwrap().document().unwrap();
        let budget = Some(Budget::BitsPerWeight(3.25));
        Overrides { budget, ..Overrides::default() }.apply(&mut document).unwrap();
        let recipe = Recipe::from_document(&document).unwrap();
        assert_eq!(recipe.candidates.len(), 7, "2 to 8 bits");
        let json = recipe.to_json();
        assert_eq!(json["budget"], json!({ "bpw": 3.25 }));
        let again = Recipe::parse(&json.to_string()).unwrap();
        assert_eq!((again.to_json(), again.candidates.len()), (json, 7));
        // Steps for the same layers go together; a step for others is left alone.
        let text = "steps: [{method: rtn, bits: 4}, {method: gptq, bits: 4},\n\
                    {method: rtn, bits: 8, targets: lm_head}]\nbudget: {bpw: 3}";
        let found = candidates(text);
        assert_eq!(found[0], "rtn 2 128, gptq 2 128, rtn 8 128");
        assert_eq!(found.len(), 7);
    }

    #[test]
    fn what_is_wrong_with_a_budget_is_named_with_its_place() {
        let cases = [
            ("budget: {bpw: 3, size: 1}", "line 2, column 9: budget is one of bpw, size"),
            ("budget: {bits: 3}", "unknown key \"bits\" of a budget"),
            ("budget: {bpw: 0}", "line 2, column 15: budget.bpw: 0 is not a positive number"),
            ("budget: {size: 3 apples}", "budget.size: \"3 apples\" is not a size"),
            ("budget: {max_kl: -1}", "budget.max_kl: -1 is not a positive"),
            ("budget: {parameters: many}", "budget.parameters: \"many\" is not a number; write"),
            ("budget: {speedup: 0}", "budget.speedup: 0 is not a positive"),
        ];
        for (budget, expected) in cases {
            let text = format!("steps: [{{method: gptq}}]\n{budget}\n");
            let refusal = Recipe::parse(&text).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{budget}: {refusal}");
        }
        let open = "steps:\n  - method: gptq\n    bits: [3, 4]\n";
        let refusal = Recipe::parse(open).unwrap_err().to_string();
        assert!(refusal.contains("have 2 candidates and no budget"), "{refusal}");
        let wrong = "steps:\n  - method: gptq\n    bits: [3, 9]\nbudget: {bpw: 3}\n";
        let refusal = Recipe::parse(wrong).unwrap_err().to_string();
        assert!(refusal.starts_with("line 3, column 15: step gptq: bits: 9 is not"), "{refusal}");
        for (steps, expected) in [
            ("[{one_of: []}]", "one_of needs a step"),
            ("[{one_of: 3}]", "one_of is a list"),
            ("[{one_of: [], bits: 3}]", "unknown key \"bits\" beside one_of"),
            ("[{method: gptq, bits: []}]", "bits has no value"),
        ] {
            let text = format!("steps: {steps}\nbudget: {{bpw: 3}}");
            let refusal = Recipe::parse(&text).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{steps}: {refusal}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_bytes("8GB"), Ok(8_000_000_000));
        assert_eq!(parse_bytes("1.5 MiB"), Ok(1_572_864));
        assert_eq!(parse_bytes("123"), Ok(123));
        let wrong = ["-1GB", "8 apples", ""];
        assert!(wrong.iter().all(|text| parse_bytes(text).is_err()));
        assert_eq!(parse_count("1.5B"), Ok(1_500_000_000));
        assert_eq!((parse_count("100 m"), parse_count("123")), (Ok(100_000_000), Ok(123)));
        assert!(["-1M", "M", "8 apples", "1e30", "nan"].iter().all(|t| parse_count(t).is_err()));
    }
}
