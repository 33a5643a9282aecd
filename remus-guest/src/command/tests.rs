use super::*;
use crate::crew::Crew;
use crate::node::Memory;
use crate::resp::{Limits, Parser};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const ARENA: usize = 16 * 4096;

/// Runs one inline command on `node`; its reply.
fn ask(node: &mut Node<'_>, line: &[u8]) -> Vec<u8> {
    let mut parser = Parser::default();
    let mut bytes = line.to_vec();
    bytes.push(b'\n');
    let limits = node.memory.limits;
    parser.parse(&bytes, &limits).unwrap();
    let mut out = Vec::new();
    let args = parser.args(&bytes);
    if !args.is_empty() {
        let mut reply = Reply::new(&mut out, limits.reply);
        node.execute(args, &mut reply, 42);
        reply.finish();
    }
    out
}

fn memory() -> Memory {
    let limits = Limits { bulk: 4096, request: 8192, reply: 16384 };
    Memory { heap: 1 << 20, store: 1 << 19, buffers: 1 << 18, socket: 4096, limits }
}

fn node(arena: &mut [u8]) -> Node<'_> {
    Node::new(memory(), Crew::alone(arena), 6379, 0)
}

#[test]
fn the_table_is_sorted_so_that_every_name_is_found() {
    assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
    for command in COMMANDS {
        let upper = command.name.to_ascii_uppercase();
        assert_eq!(find(upper.as_bytes()).map(|c| c.name), Some(command.name));
    }
}

#[test]
fn replies_are_those_of_redis() {
    let mut arena = vec![0; ARENA];
    let node = &mut node(&mut arena);
    for (line, want) in [
        ("ping", "+PONG\r\n"),
        ("PING hi", "$2\r\nhi\r\n"),
        ("set a 1", "+OK\r\n"),
        ("incr a", ":2\r\n"),
        ("get a", "$1\r\n2\r\n"),
        ("get nothing", "$-1\r\n"),
        ("mset b 1 c 2", "+OK\r\n"),
        ("mset b 1 c", "-ERR wrong number of arguments for 'mset' command\r\n"),
        ("mget a b x", "*3\r\n$1\r\n2\r\n$1\r\n1\r\n$-1\r\n"),
        ("exists a b x a", ":3\r\n"),
        ("del b c x", ":2\r\n"),
        ("rpush l 1 2 3", ":3\r\n"),
        ("lpush l 0", ":4\r\n"),
        ("lrange l 0 1", "*2\r\n$1\r\n0\r\n$1\r\n1\r\n"),
        ("lpop l", "$1\r\n0\r\n"),
        ("get l", "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"),
        ("sadd s x y x", ":2\r\n"),
        ("hset h f v g w", ":2\r\n"),
        ("hget h f", "$1\r\nv\r\n"),
        ("zadd z 1.5 m", ":1\r\n"),
        ("zpopmin z", "*2\r\n$1\r\nm\r\n$3\r\n1.5\r\n"),
        ("zpopmin z", "*0\r\n"),
        ("type h", "+hash\r\n"),
        ("dbsize", ":4\r\n"),
        ("config get save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ("get", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("hello 3", "-ERR unknown command 'hello', with args beginning with: '3' \r\n"),
        ("set a b ex 10", "-ERR syntax error\r\n"),
        ("time", ":42\r\n"),
        ("flushall", "+OK\r\n"),
        ("dbsize", ":0\r\n"),
    ] {
        assert_eq!(String::from_utf8(ask(node, line.as_bytes())).unwrap(), want, "{line}");
    }
}

#[test]
fn work_and_beacon_are_steered_by_commands() {
    let mut arena = vec![0; ARENA];
    let node = &mut node(&mut arena);
    assert_eq!(ask(node, b"work start hot 16 64 1000"), b"+OK\r\n");
    assert_eq!(ask(node, b"work stat"), b"*6\r\n:1\r\n:0\r\n$3\r\nhot\r\n:16\r\n:64\r\n:1000\r\n");
    assert!(ask(node, b"work start hot 17 64 0").starts_with(b"-ERR region_pages is 1 to 16"));
    assert!(ask(node, b"work start hot 16 4097 0").starts_with(b"-ERR bytes_per_page"));
    assert_eq!(ask(node, b"work stop"), b"+OK\r\n");
    assert_eq!(ask(node, b"beacon"), b":0\r\n");
    assert_eq!(ask(node, b"beacon start 5"), b"+OK\r\n");
    assert_eq!(node.due_ns(42), Some(42));
    assert!(ask(node, b"beacon start 0").starts_with(b"-ERR"));
    assert_eq!(ask(node, b"beacon stop"), b"+OK\r\n");
    assert_eq!(node.due_ns(42), None);
    assert!(ask(node, b"info").windows(14).any(|w| w == b"work_progress:"));
}

#[test]
fn a_store_without_room_says_oom_and_serves_on() {
    let mut arena = vec![0; ARENA];
    let node = &mut node(&mut arena);
    let big = String::from_utf8(vec![b'x'; 4000]).unwrap();
    let oom = (0..200)
        .map(|i| ask(node, alloc::format!("set key{i} {big}").as_bytes()))
        .find(|reply| reply.starts_with(b"-OOM "));
    assert!(oom.is_some());
    assert_eq!(ask(node, b"ping"), b"+PONG\r\n");
    let before = ask(node, b"digest");
    assert!(ask(node, alloc::format!("mset fresh 1 more {big}").as_bytes()).starts_with(b"-OOM "));
    assert_eq!(ask(node, b"digest"), before, "a refused MSET has set nothing");
}

proptest! {
    #[test]
    fn any_words_get_exactly_one_reply(
        name in 0..COMMANDS.len(),
        words in proptest::collection::vec("[ -~]{0,6}|[0-9-]{1,4}|start|stop|get", 0..6),
    ) {
        let mut arena = vec![0; ARENA];
        let node = &mut node(&mut arena);
        let mut line = String::from(COMMANDS[name].name);
        for word in words {
            line.push(' ');
            line.push_str(&word);
        }
        let reply = ask(node, line.as_bytes());
        prop_assert!(matches!(reply.first(), Some(b'+' | b'-' | b':' | b'$' | b'*')));
        prop_assert!(reply.ends_with(b"\r\n"));
    }
}
