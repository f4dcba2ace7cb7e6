//! Message attributes: what travels beside a body, with the type that its sender gave it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The type of a plain text attribute.
const STRING: &str = "String";

/// Message attributes by name.
pub type Attributes = BTreeMap<String, Attribute>;

/// One message attribute. As JSON it is a string where its type is `String`, else an object with
/// `type` and either `text` or `base64`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Repr", into = "Repr")]
pub struct Attribute {
    /// `String`, `Number` or `Binary`, and a label of the sender's behind a dot, if it gave one.
    pub data_type: String,
    /// The value.
    pub value: AttributeValue,
}

/// The value of a message attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributeValue {
    /// A text or a number.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
}

impl Attribute {
    /// The value, where it is a text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            AttributeValue::Text(text) => Some(text),
            AttributeValue::Binary(_) => None,
        }
    }

    /// What SQS counts for type and value, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let value = match &self.value {
            AttributeValue::Text(text) => text.len(),
            AttributeValue::Binary(bytes) => bytes.len(),
        };
        self.data_type.len() + value
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self { data_type: STRING.to_owned(), value: AttributeValue::Text(text) }
    }
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// How an attribute is written as JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Repr {
    Plain(String),
    Text {
        #[serde(rename = "type")]
        data_type: String,
        text: String,
    },
    Binary {
        #[serde(rename = "type")]
        data_type: String,
        base64: String,
    },
}

impl From<Repr> for Attribute {
    fn from(repr: Repr) -> Self {
        match repr {
            Repr::Plain(text) => text.into(),
            Repr::Text { data_type, text } => Self { data_type, value: AttributeValue::Text(text) },
            // A row that somebody edited: the text itself is all there is.
            Repr::Binary { data_type, base64 } => match STANDARD.decode(&base64) {
                Ok(bytes) => Self { data_type, value: AttributeValue::Binary(bytes) },
                Err(_) => base64.into(),
            },
        }
    }
}

impl From<Attribute> for Repr {
    fn from(attribute: Attribute) -> Self {
        let data_type = attribute.data_type;
        match attribute.value {
            AttributeValue::Text(text) if data_type == STRING => Self::Plain(text),
            AttributeValue::Text(text) => Self::Text { data_type, text },
            AttributeValue::Binary(bytes) => {
                Self::Binary { data_type, base64: STANDARD.encode(bytes) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_and_value_survive_the_way_through_json() {
        let attribute = |data_type: &str, value| Attribute { data_type: data_type.into(), value };
        for (attribute, json) in [
            ("a \"b\"".into(), r#""a \"b\"""#),
            (
                attribute("Number", AttributeValue::Text("1.50".into())),
                r#"{"type":"Number","text":"1.50"}"#,
            ),
            (
                attribute("Binary.png", AttributeValue::Binary(vec![0, 255])),
                r#"{"type":"Binary.png","base64":"AP8="}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string::<Attribute>(&attribute).expect("JSON"), json);
            assert_eq!(serde_json::from_str::<Attribute>(json).expect("an attribute"), attribute);
        }
    }
}
