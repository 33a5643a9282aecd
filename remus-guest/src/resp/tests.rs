use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { bulk: 1000, request: 4000, reply: 100 };

fn parse(bytes: &[u8]) -> Result<(Parsed, Vec<Vec<u8>>), ProtocolError> {
    let mut parser = Parser::default();
    let parsed = parser.parse(bytes, &LIMITS)?;
    Ok((parsed, parser.args(bytes).from(0).map(<[u8]>::to_vec).collect()))
}

fn encode(args: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut reply = Reply::new(&mut out, usize::MAX);
    reply.array(args.len());
    args.iter().for_each(|a| reply.bulk(a));
    out
}

#[test]
fn an_inline_command_is_words_between_blanks() {
    let (parsed, args) = parse(b"  SET  a b\r\nPING").unwrap();
    assert_eq!(parsed, Parsed::Request { consumed: 12 });
    assert_eq!(args, [b"SET".to_vec(), b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(parse(b"\r\n").unwrap(), (Parsed::Request { consumed: 2 }, Vec::new()));
}

#[test]
fn bad_lengths_are_refused_before_the_bytes_come() {
    assert_eq!(parse(b"*1\r\n$1001\r\n"), Err(ProtocolError::BulkLength));
    assert_eq!(parse(b"*1\r\n$-1\r\n"), Err(ProtocolError::BulkLength));
    assert_eq!(parse(b"*9999999\r\n"), Err(ProtocolError::MultibulkCountTooBig));
    assert_eq!(parse(b"*x\r\n"), Err(ProtocolError::MultibulkLength));
    assert_eq!(parse(b"*111111111111111111111111111"), Err(ProtocolError::MultibulkLength));
    assert_eq!(parse(b"*1\r\n+3\r\n"), Err(ProtocolError::ExpectedDollar(b'+')));
    assert_eq!(parse(&[b'a'; INLINE_MAX]), Err(ProtocolError::InlineTooBig));
    let many: Vec<_> = (0..5).map(|_| alloc::vec![b'x'; 1000]).collect();
    assert_eq!(parse(&encode(&many)), Err(ProtocolError::RequestTooBig));
}

#[test]
fn a_reply_beyond_its_limit_becomes_an_error() {
    let mut out = b"+OK\r\n".to_vec();
    let mut reply = Reply::new(&mut out, 100);
    reply.array(2);
    reply.bulk(&[b'x'; 60]);
    reply.bulk(&[b'x'; 60]);
    reply.finish();
    assert!(out.starts_with(b"+OK\r\n-ERR "));
    assert!(out.len() < 60);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(parse(&bytes));
    }

    #[test]
    fn near_requests_do_not_panic_either(text in "[*$0-9\r\n-]{0,60}") {
        drop(parse(text.as_bytes()));
    }

    #[test]
    fn a_request_is_found_whole_and_never_early(
        args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)
    ) {
        let bytes = encode(&args);
        for cut in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..cut]).unwrap().0, Parsed::Incomplete);
        }
        let (parsed, got) = parse(&bytes).unwrap();
        prop_assert_eq!(parsed, Parsed::Request { consumed: bytes.len() });
        prop_assert_eq!(got, args);
    }
}
