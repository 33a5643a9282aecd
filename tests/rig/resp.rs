//! The Redis protocol (RESP2), as far as a client needs it: commands out, replies in.
//!
//! Pure. The other end may be a guest gone wrong, so a reply has limits before anything is allocated.

/// More than any reply that the rig asks for.
const BULK_LIMIT: usize = 1 << 20;
const ARRAY_LIMIT: usize = 1 << 16;
const DEPTH_LIMIT: usize = 4;
const LINE_LIMIT: usize = 4096;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Option<Vec<Reply>>),
}

/// Bytes that are not RESP, or beyond the limits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server's answer is not RESP: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A command as an array of bulk strings.
pub fn command<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words.iter().map(AsRef::as_ref) {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The reply at the head of `bytes` and its length, `None` while it is not whole.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Malformed> {
    parse_at(bytes, DEPTH_LIMIT)
}

fn parse_at(bytes: &[u8], depth: usize) -> Result<Option<(Reply, usize)>, Malformed> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() > LINE_LIMIT { Err(Malformed("endless line")) } else { Ok(None) };
    };
    let (head, rest) = (&bytes[..end], &bytes[end + 2..]);
    let (&kind, text) = head.split_first().ok_or(Malformed("empty line"))?;
    let text = std::str::from_utf8(text).map_err(|_| Malformed("line is not text"))?;
    let used = end + 2;
    match kind {
        b'+' => Ok(Some((Reply::Status(text.to_owned()), used))),
        b'-' => Ok(Some((Reply::Error(text.to_owned()), used))),
        b':' => Ok(Some((Reply::Integer(integer(text)?), used))),
        b'$' => {
            let Some(length) = length(text, BULK_LIMIT)? else {
                return Ok(Some((Reply::Bulk(None), used)));
            };
            let Some(found) = rest.get(..length + 2) else { return Ok(None) };
            let value = found.strip_suffix(b"\r\n").ok_or(Malformed("bulk has no end"))?;
            Ok(Some((Reply::Bulk(Some(value.to_vec())), used + length + 2)))
        }
        b'*' => {
            let Some(length) = length(text, ARRAY_LIMIT)? else {
                return Ok(Some((Reply::Array(None), used)));
            };
            let depth = depth.checked_sub(1).ok_or(Malformed("too deep"))?;
            let mut items = Vec::new();
            let mut used = used;
            for _ in 0..length {
                let Some((item, length)) = parse_at(&bytes[used..], depth)? else {
                    return Ok(None);
                };
                items.push(item);
                used += length;
            }
            Ok(Some((Reply::Array(Some(items)), used)))
        }
        _ => Err(Malformed("unknown kind of reply")),
    }
}

fn integer(text: &str) -> Result<i64, Malformed> {
    text.parse().map_err(|_| Malformed("not an integer"))
}

/// A length, `None` for the null value.
fn length(text: &str, limit: usize) -> Result<Option<usize>, Malformed> {
    if text == "-1" {
        return Ok(None);
    }
    let length: usize = text.parse().map_err(|_| Malformed("not a length"))?;
    if length > limit { Err(Malformed("too long")) } else { Ok(Some(length)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(reply: &Reply) -> Vec<u8> {
        match reply {
            Reply::Status(text) => format!("+{text}\r\n").into_bytes(),
            Reply::Error(text) => format!("-{text}\r\n").into_bytes(),
            Reply::Integer(value) => format!(":{value}\r\n").into_bytes(),
            Reply::Bulk(None) => b"$-1\r\n".to_vec(),
            Reply::Bulk(Some(value)) => {
                [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
            }
            Reply::Array(None) => b"*-1\r\n".to_vec(),
            Reply::Array(Some(items)) => {
                let head = format!("*{}\r\n", items.len()).into_bytes();
                items.iter().fold(head, |all, item| [all, encode(item)].concat())
            }
        }
    }

    fn replies() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            "[ -~]{0,20}".prop_map(Reply::Status),
            "[ -~]{0,20}".prop_map(Reply::Error),
            any::<i64>().prop_map(Reply::Integer),
            any::<Option<Vec<u8>>>().prop_map(Reply::Bulk),
            Just(Reply::Array(None)),
        ];
        let array = prop::collection::vec(leaf.clone(), 0..5);
        prop_oneof![leaf, array.prop_map(|items| Reply::Array(Some(items)))]
    }

    proptest! {
        #[test]
        fn a_reply_is_read_back_whole_and_never_from_a_part(reply in replies()) {
            let bytes = encode(&reply);
            for part in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..part]), Ok(None));
            }
            let length = bytes.len();
            let more = [bytes, b"+next\r\n".to_vec()].concat();
            prop_assert_eq!(parse(&more), Ok(Some((reply, length))));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            // The answer does not matter, only that there is one.
            drop(parse(&bytes));
        }
    }

    #[test]
    fn what_is_too_long_or_too_deep_is_refused_before_it_arrives() {
        assert_eq!(parse(b"$1048577\r\n"), Err(Malformed("too long")));
        assert_eq!(parse(b"*65537\r\n"), Err(Malformed("too long")));
        assert_eq!(parse(b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n"), Err(Malformed("too deep")));
        assert_eq!(parse(&[b'+'; LINE_LIMIT + 1]), Err(Malformed("endless line")));
    }

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        assert_eq!(command(&["GET", "k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }
}
