//! Translates what serde says of a value of the wrong type into the words of a config file.

/// Turns "invalid type: string \"256M\", expected i64" into words that do not name this program's types. A message of
/// another form stays as it is.
pub(super) fn in_words(message: &str) -> String {
    let Some((found, expected)) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return message.to_owned();
    };
    format!("expected {}, found {}", wanted(expected), given(found))
}

fn wanted(expected: &str) -> &str {
    match expected {
        "i64" => "a whole number",
        "a string" => "a text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        _ if expected.starts_with("struct ") || expected == "a map" => "a section",
        other => other,
    }
}

fn given(found: &str) -> String {
    // The value stands between back quotes, except for text, which has quotes of its own.
    let value = |kind: &str| found.strip_prefix(kind).map(|value| value.trim_matches('`'));
    if let Some(text) = value("string ") {
        return format!("the text {text}");
    }
    if let Some(number) = value("integer ").or_else(|| value("floating point ")) {
        return format!("the number {number}");
    }
    if let Some(value) = value("boolean ") {
        return value.to_owned();
    }
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "a section".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_not_understood_is_passed_on() {
        for message in ["missing field `x`", "invalid type: string", ""] {
            assert_eq!(in_words(message), message);
        }
        let comma = in_words("invalid type: string \"a, expected b\", expected i64");
        assert_eq!(comma, "expected a whole number, found the text \"a, expected b\"");
    }
}
