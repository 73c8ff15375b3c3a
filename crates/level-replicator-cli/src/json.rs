//! Keys and values in JSON: text as itself, other bytes in base 64 under a name with `_b64` behind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Adds bytes under a name.
pub(crate) fn put(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), Value::from(text)),
        Err(_) => object.insert(format!("{name}_b64"), Value::from(STANDARD.encode(bytes))),
    };
}

/// The bytes under a name.
///
/// # Errors
///
/// Which name is missing, or holds something else.
pub(crate) fn take(object: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    let encoded = format!("{name}_b64");
    match (object.get(name), object.get(&encoded)) {
        (Some(Value::String(text)), None) => Ok(text.clone().into_bytes()),
        (None, Some(Value::String(text))) => {
            let bytes = STANDARD.decode(text);
            bytes.map_err(|error| format!("'{encoded}' is not in base 64: {error}"))
        }
        (None, None) => Err(format!("neither '{name}' nor '{encoded}' is there")),
        (Some(_), Some(_)) => Err(format!("both '{name}' and '{encoded}' are there")),
        (Some(_), None) => Err(format!("'{name}' is no text")),
        (None, Some(_)) => Err(format!("'{encoded}' is no text")),
    }
}

/// A key and its value, as an object.
pub(crate) fn entry(key: &[u8], value: &[u8]) -> Value {
    let mut object = Map::new();
    put(&mut object, "key", key);
    put(&mut object, "value", value);
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back_as_they_were() {
        for bytes in [&b"text \"\n"[..], b"\xff\x00", b""] {
            let Value::Object(object) = entry(bytes, bytes) else {
                panic!("an object");
            };
            assert_eq!(take(&object, "key").as_deref(), Ok(bytes));
            assert_eq!(take(&object, "value").as_deref(), Ok(bytes));
        }
        assert_eq!(
            entry(b"k", b"\xff").to_string(),
            r#"{"key":"k","value_b64":"/w=="}"#
        );
    }

    #[test]
    fn what_is_missing_or_double_is_named() {
        let object = |text: &str| match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            other => panic!("{other:?}"),
        };
        let cases = [
            ("{}", "neither 'key' nor 'key_b64' is there"),
            (r#"{"key":1}"#, "'key' is no text"),
            (
                r#"{"key":"a","key_b64":"YQ=="}"#,
                "both 'key' and 'key_b64' are there",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(take(&object(text), "key"), Err(expected.to_owned()));
        }
        assert!(take(&object(r#"{"key_b64":"?"}"#), "key").is_err());
    }
}
