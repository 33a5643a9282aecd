//! A small Redis server in a namespace, which can be made to lie: what the checking client is tested against.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use rig::{
    netns::NetNs,
    resp::{self, Reply},
};

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) strings: BTreeMap<String, String>,
    pub(crate) lists: BTreeMap<String, Vec<String>>,
}

/// Serves on `address` in `netns` until the process ends.
pub(crate) fn serve(netns: &NetNs, address: SocketAddr) -> Arc<Mutex<Store>> {
    let listener = {
        let _entered = netns.enter().unwrap();
        TcpListener::bind(address).unwrap()
    };
    let store = Arc::new(Mutex::new(Store::default()));
    let served = store.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, served) = (stream.unwrap(), served.clone());
            thread::spawn(move || talk(stream, &served));
        }
    });
    store
}

fn talk(mut stream: TcpStream, store: &Mutex<Store>) {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => received.extend_from_slice(&buffer[..length]),
        }
        while let Some((Reply::Array(Some(words)), length)) = resp::parse(&received).unwrap() {
            received.drain(..length);
            let words: Vec<String> = words.into_iter().map(text).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let answer = store.lock().unwrap().answer(&words);
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn text(word: Reply) -> String {
    let Reply::Bulk(Some(bytes)) = word else { panic!("a command is made of bulk strings") };
    String::from_utf8(bytes).unwrap()
}

impl Store {
    fn answer(&mut self, words: &[&str]) -> String {
        match words {
            ["PING"] => "+PONG\r\n".into(),
            ["INCR", key] => {
                let value =
                    self.strings.get(*key).map_or(0, |value| value.parse::<u64>().unwrap()) + 1;
                self.strings.insert((*key).into(), value.to_string());
                format!(":{value}\r\n")
            }
            ["SET", key, value] => {
                self.strings.insert((*key).into(), (*value).into());
                "+OK\r\n".into()
            }
            ["GET", key] => bulk(self.strings.get(*key)),
            ["MGET", keys @ ..] => {
                let values = keys.iter().map(|key| bulk(self.strings.get(*key)));
                format!("*{}\r\n{}", keys.len(), values.collect::<String>())
            }
            ["RPUSH", key, item] => {
                let list = self.lists.entry((*key).into()).or_default();
                list.push((*item).into());
                format!(":{}\r\n", list.len())
            }
            ["LRANGE", key, first, last] => {
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                let list = self.lists.get(*key).map_or(&[][..], Vec::as_slice);
                let items: Vec<_> = list.iter().skip(first).take(last + 1 - first).collect();
                let values = items.iter().map(|item| bulk(Some(item)));
                format!("*{}\r\n{}", items.len(), values.collect::<String>())
            }
            other => format!("-ERR unknown command {other:?}\r\n"),
        }
    }
}

fn bulk(value: Option<&String>) -> String {
    value.map_or("$-1\r\n".into(), |value| format!("${}\r\n{value}\r\n", value.len()))
}
