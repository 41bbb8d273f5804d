//! A YAML document that knows where everything stands, so that any complaint about a recipe can
//! name the line and the column.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;
use std::fmt;

/// A place in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// From 1; 0 when the value came from the command line.
    pub line: u64,
    /// From 1.
    pub column: u64,
}

/// Ready to stand before a message: nothing for a value from the command line.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => Ok(()),
            line => write!(f, "line {line}, column {}: ", self.column),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub content: Content,
}

/// The kinds of values.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Null, a flag, a number or a string.
    Scalar(Value),
    /// A list.
    List(Vec<Node>),
    /// A map, in order.
    Map(Vec<Field>),
}

/// An entry of a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its key.
    pub key: String,
    /// Where the key stands.
    pub place: Place,
    /// Its value.
    pub node: Node,
}

impl Node {
    /// Parses YAML (or JSON, which is YAML).
    ///
    /// # Errors
    /// The parser's message and where it stumbled.
    pub fn parse(text: &str) -> Result<Self, (Place, String)> {
        let spanned: Spanned<Content> = serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location().map_or(Place { line: 1, column: 1 }, place);
            // The parser draws the place below its message.
            let message = error.without_snippet().to_string();
            (place, message.lines().next().unwrap_or_default().to_owned())
        })?;
        Ok(Self::from(spanned))
    }

    /// A value from the command line.
    pub fn given(value: Value) -> Self {
        let content = match value {
            Value::Array(items) => Content::List(items.into_iter().map(Self::given).collect()),
            Value::Object(fields) => Content::Map(
                fields
                    .into_iter()
                    .map(|(key, value)| Field {
                        key,
                        place: Place::default(),
                        node: Self::given(value),
                    })
                    .collect(),
            ),
            scalar => Content::Scalar(scalar),
        };
        Self { place: Place::default(), content }
    }

    /// The fields of a map.
    pub fn fields(&self) -> Option<&[Field]> {
        match &self.content {
            Content::Map(fields) => Some(fields),
            _ => None,
        }
    }

    /// The field of this key.
    pub fn field(&self, key: &str) -> Option<&Field> {
        self.fields()?.iter().find(|field| field.key == key)
    }

    /// Puts a value under a key of a map, in place of one that is there.
    pub fn set(&mut self, key: &str, node: Self) {
        if let Content::Scalar(Value::Null) = self.content {
            self.content = Content::Map(vec![]);
        }
        if let Content::Map(fields) = &mut self.content {
            match fields.iter_mut().find(|field| field.key == key) {
                Some(field) => field.node = node,
                None => fields.push(Field { key: key.to_owned(), place: node.place, node }),
            }
        }
    }

    /// The same without places.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(nodes) => Value::Array(nodes.iter().map(Self::to_json).collect()),
            Content::Map(fields) => {
                let pairs = fields.iter().map(|f| (f.key.clone(), f.node.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// Where the value at a path such as `grid.bits` or `targets[1]` stands: as far down as the
    /// path can be followed.
    pub fn place_of(&self, path: &str) -> Place {
        let mut node = self;
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let next = match &node.content {
                Content::List(nodes) => step.parse::<usize>().ok().and_then(|i| nodes.get(i)),
                Content::Map(fields) => {
                    fields.iter().find(|field| field.key == step).map(|field| &field.node)
                }
                Content::Scalar(_) => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.place
    }
}

impl From<Spanned<Content>> for Node {
    fn from(spanned: Spanned<Content>) -> Self {
        Self { place: place(spanned.referenced), content: spanned.value }
    }
}

fn place(location: serde_saphyr::Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Content::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
        let mut nodes = vec![];
        while let Some(node) = list.next_element::<Spanned<Content>>()? {
            nodes.push(Node::from(node));
        }
        Ok(Content::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut fields = vec![];
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let node = Node::from(map.next_value::<Spanned<Content>>()?);
            fields.push(Field { key: key.value, place: place(key.referenced), node });
        }
        Ok(Content::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "steps:\n  - method: gptq\n    bits: 4\n    damp: 1e-2\n  - {method: rtn, on: true}\nempty:\n";

    #[test]
    fn everything_knows_its_place() {
        let document = Node::parse(TEXT).unwrap();
        assert_eq!(document.place_of("steps[0].bits"), Place { line: 3, column: 11 });
        assert_eq!(document.place_of("steps.1.method").line, 5);
        let step = &document.field("steps").unwrap().node;
        let Content::List(steps) = &step.content else { panic!("a list") };
        assert_eq!(steps[0].field("damp").unwrap().place, Place { line: 4, column: 5 });
    }

    #[test]
    fn types_are_those_of_yaml() {
        let expected = serde_json::json!({
            "steps": [{"method": "gptq", "bits": 4, "damp": 0.01}, {"method": "rtn", "on": true}],
            "empty": null,
        });
        assert_eq!(Node::parse(TEXT).unwrap().to_json(), expected);
    }

    #[test]
    fn broken_yaml_is_an_error_with_a_line() {
        for text in ["a: [1, 2", "a: 1\na: 2\n", "a: 1\n b: 2", "a: {b", "&a [*a, *a"] {
            let (place, what) = Node::parse(text).unwrap_err();
            assert!(place.line >= 1 && !what.is_empty(), "{text:?}: {place}{what}");
        }
    }
}
