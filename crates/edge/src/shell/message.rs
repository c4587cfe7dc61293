//! What a client's text messages mean. No I/O.

use serde::Deserialize;

/// A text message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// The client's terminal has another size.
    Resize { cols: u16, rows: u16 },
    /// It is typed as it is.
    Typed,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Known {
    Resize { cols: u16, rows: u16 },
}

/// Reads a text message. Whatever is not the one that is known was typed, as with the real service: there is no telling a
/// mistake from a person who types JSON.
pub(super) fn read(text: &str) -> Text {
    match serde_json::from_str(text) {
        Ok(Known::Resize { cols, rows }) => Text::Resize { cols, rows },
        Err(_) => Text::Typed,
    }
}

/// The first message to a client.
pub(super) fn session_init(session: &uuid::Uuid) -> String {
    serde_json::json!({"type": "session_init", "session_id": session}).to_string()
}

/// The last but for the close, to clients that know of it.
pub(super) fn exit(code: i32) -> String {
    serde_json::json!({"type": "exit", "code": code}).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_is_told_from_what_is_typed() {
        let resize = |cols, rows| Text::Resize { cols, rows };
        assert_eq!(read(r#"{"type":"resize","cols":120,"rows":40}"#), resize(120, 40));
        assert_eq!(read(r#" { "rows": 0, "cols": 65535, "type": "resize", "more": 1 } "#), resize(65535, 0));
        for typed in [
            "",
            "ls\n",
            r#"{"type":"resize"}"#,
            r#"{"type":"resize","cols":65536,"rows":40}"#,
            r#"{"type":"resize","cols":-1,"rows":40}"#,
            r#"{"type":"resize","cols":"120","rows":40}"#,
            r#"{"type":"exit","code":0}"#,
            r#"{"cols":120,"rows":40}"#,
            r#"{"type":"resize","cols":120,"rows":40}{}"#,
            "[\"resize\"]",
        ] {
            assert_eq!(read(typed), Text::Typed, "{typed}");
        }
    }

    #[test]
    fn what_is_told_is_what_clients_look_for() {
        let session = uuid::Uuid::from_u128(7);
        let init: serde_json::Value = serde_json::from_str(&session_init(&session)).unwrap();
        let expected = serde_json::json!({"type": "session_init", "session_id": session.to_string()});
        assert_eq!(init, expected);
        let exit: serde_json::Value = serde_json::from_str(&exit(-1)).unwrap();
        assert_eq!(exit, serde_json::json!({"type": "exit", "code": -1}));
    }

    proptest! {
        #[test]
        fn every_size_is_read_and_no_text_breaks_the_reader(cols: u16, rows: u16, text in ".{0,100}") {
            let told = format!(r#"{{"type":"resize","cols":{cols},"rows":{rows}}}"#);
            prop_assert_eq!(read(&told), Text::Resize { cols, rows });
            read(&text);
        }
    }
}
