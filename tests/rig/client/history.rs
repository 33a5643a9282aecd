//! What one connection asked and was answered, and the judgement of it.
//!
//! Each connection has keys of its own and one request outstanding, so that for every request there is
//! exactly one right reply: the effects of all requests before it, in order, each once. Whatever else comes
//! back means that an effect was forgotten, repeated or made up.
//!
//! A request that was never answered (its connection died) may have taken effect or not. Both are right
//! until a later reply, on another connection, tells which; from then on only that one is.

use std::collections::BTreeMap;

use crate::resp::Reply;

/// How many items one read of the list, or of several keys, returns at most.
pub const READ_BATCH: usize = 64;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Adds one to the connection's counter.
    Increment,
    /// Sets a key that no request set before to a value that no other has.
    Set {
        key: u64,
    },
    Get {
        key: u64,
    },
    /// Appends an item that no other request appended.
    Push {
        item: u64,
    },
    ReadCounter,
    /// Reads the keys `first..first + count`.
    ReadKeys {
        first: u64,
        count: usize,
    },
    /// Reads `READ_BATCH` items of the list from `first` on.
    ReadItems {
        first: usize,
    },
}

impl Request {
    /// The words of the command, on keys that begin with `prefix`.
    pub fn words(&self, prefix: &str) -> Vec<String> {
        let words: Vec<String> = match self {
            Self::Increment => vec!["INCR".into(), counter(prefix)],
            Self::Set { key } => vec!["SET".into(), name(prefix, *key), value(prefix, *key)],
            Self::Get { key } => vec!["GET".into(), name(prefix, *key)],
            Self::Push { item } => vec!["RPUSH".into(), list(prefix), value(prefix, *item)],
            Self::ReadCounter => vec!["GET".into(), counter(prefix)],
            Self::ReadKeys { first, count } => {
                let names = (*first..).take(*count).map(|key| name(prefix, key));
                std::iter::once("MGET".into()).chain(names).collect()
            }
            Self::ReadItems { first } => {
                let last = first + READ_BATCH - 1;
                vec!["LRANGE".into(), list(prefix), first.to_string(), last.to_string()]
            }
        };
        words
    }
}

fn counter(prefix: &str) -> String {
    format!("{prefix}:counter")
}

fn list(prefix: &str) -> String {
    format!("{prefix}:list")
}

fn name(prefix: &str, key: u64) -> String {
    format!("{prefix}:key:{key}")
}

fn value(prefix: &str, of: u64) -> String {
    format!("{prefix}:value:{of}")
}

/// A request, and its reply if there was one.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub asked_ns: u64,
    pub request: Request,
    pub answer: Option<(u64, Reply)>,
}

/// Everything that one connection's keys went through, in order.
#[derive(Clone, Debug)]
pub struct History {
    pub prefix: String,
    pub exchanges: Vec<Exchange>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contradiction {
    /// Which exchange of the history.
    pub at: usize,
    pub asked: String,
    pub answered: String,
    pub expected: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    pub replies: u64,
    /// Requests without a reply.
    pub unanswered: u64,
    pub contradictions: Vec<Contradiction>,
}

impl History {
    pub fn new(prefix: String) -> Self {
        Self { prefix, exchanges: Vec::new() }
    }

    /// The exchanges that change something are repeated on a model, and each reply is compared with the
    /// model's. After a contradiction the model stays as it is: one lie is not counted again and again
    /// unless what was forgotten is missed again and again.
    pub fn judge(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let mut possible = vec![Model::default()];
        for (at, exchange) in self.exchanges.iter().enumerate() {
            let Some((_, reply)) = &exchange.answer else {
                verdict.unanswered += 1;
                let effective = possible.iter().cloned().map(|mut model| {
                    model.apply(&exchange.request, &self.prefix);
                    model
                });
                let effective: Vec<_> = effective.collect();
                possible.extend(effective);
                continue;
            };
            verdict.replies += 1;
            let mut expected = Vec::new();
            let mut fitting = Vec::new();
            for mut model in possible {
                let right = model.apply(&exchange.request, &self.prefix);
                fitting.push((right == *reply, model));
                expected.push(right);
            }
            if fitting.iter().any(|(fits, _)| *fits) {
                fitting.retain(|(fits, _)| *fits);
            } else {
                verdict.contradictions.push(Contradiction {
                    at,
                    asked: exchange.request.words(&self.prefix).join(" "),
                    answered: format!("{reply:?}"),
                    expected: format!("{expected:?}"),
                });
            }
            possible = fitting.into_iter().map(|(_, model)| model).collect();
        }
        verdict
    }

    /// Requests that read back all that this history says was confirmed.
    pub fn read_back(&self) -> Vec<Request> {
        let keys = self.count(|request| matches!(request, Request::Set { .. }));
        let items = self.count(|request| matches!(request, Request::Push { .. }));
        let mut requests = vec![Request::ReadCounter];
        for first in (0..keys).step_by(READ_BATCH) {
            let count = READ_BATCH.min(keys - first);
            requests.push(Request::ReadKeys { first: first as u64, count });
        }
        // One past the end as well: nothing may have been added that was not asked for.
        for first in (0..=items).step_by(READ_BATCH) {
            requests.push(Request::ReadItems { first });
        }
        requests
    }

    fn count(&self, of: impl Fn(&Request) -> bool) -> usize {
        self.exchanges.iter().filter(|exchange| of(&exchange.request)).count()
    }

    /// The longest time without a reply up to `end_ns`: a connection that never answers again has a gap until
    /// then.
    pub fn longest_gap(&self, end_ns: u64) -> Gap {
        let mut last = self.exchanges.first().map_or(end_ns, |exchange| exchange.asked_ns);
        let mut longest = Gap { from_ns: last, to_ns: last };
        let answered = self.exchanges.iter().filter_map(|exchange| exchange.answer.as_ref());
        let waits = self.exchanges.last().is_some_and(|exchange| exchange.answer.is_none());
        for to_ns in answered.map(|&(time, _)| time).chain(waits.then_some(end_ns)) {
            let gap = Gap { from_ns: last, to_ns };
            if gap.length_ns() > longest.length_ns() {
                longest = gap;
            }
            last = to_ns;
        }
        longest
    }

    /// The time without a reply around `at_ns`; up to `end_ns` when none came afterwards.
    pub fn gap_over(&self, at_ns: u64, end_ns: u64) -> Gap {
        let first = self.exchanges.first().map_or(at_ns, |exchange| exchange.asked_ns);
        let mut gap = Gap { from_ns: first.min(at_ns), to_ns: end_ns };
        let answered = self.exchanges.iter().filter_map(|exchange| exchange.answer.as_ref());
        for &(time, _) in answered {
            if time > at_ns {
                gap.to_ns = time;
                break;
            }
            gap.from_ns = time;
        }
        gap
    }
}

/// A time in which a connection got no reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    pub from_ns: u64,
    pub to_ns: u64,
}

impl Gap {
    pub fn length_ns(self) -> u64 {
        self.to_ns.saturating_sub(self.from_ns)
    }
}

/// What the connection's keys hold if every request took effect once.
#[derive(Clone, Default)]
struct Model {
    counter: i64,
    keys: BTreeMap<u64, String>,
    items: Vec<String>,
}

impl Model {
    /// Takes the request's effect and returns the one right reply.
    fn apply(&mut self, request: &Request, prefix: &str) -> Reply {
        let bulk = |text: &String| Reply::Bulk(Some(text.clone().into_bytes()));
        let read =
            |keys: &BTreeMap<u64, String>, key| keys.get(&key).map_or(Reply::Bulk(None), bulk);
        match request {
            Request::Increment => {
                self.counter += 1;
                Reply::Integer(self.counter)
            }
            Request::Set { key } => {
                self.keys.insert(*key, value(prefix, *key));
                Reply::Status("OK".into())
            }
            Request::Get { key } => read(&self.keys, *key),
            Request::Push { item } => {
                self.items.push(value(prefix, *item));
                Reply::Integer(i64::try_from(self.items.len()).expect("fewer than 2^63 items"))
            }
            Request::ReadCounter if self.counter == 0 => Reply::Bulk(None),
            Request::ReadCounter => bulk(&self.counter.to_string()),
            Request::ReadKeys { first, count } => {
                let keys = (*first..).take(*count);
                Reply::Array(Some(keys.map(|key| read(&self.keys, key)).collect()))
            }
            Request::ReadItems { first } => {
                let items = self.items.iter().skip(*first).take(READ_BATCH);
                Reply::Array(Some(items.map(bulk).collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that does as it is told, and with which a test can tamper.
    struct Server {
        model: Model,
        history: History,
        now_ns: u64,
    }

    impl Server {
        fn new() -> Self {
            Self { model: Model::default(), history: History::new("t".into()), now_ns: 0 }
        }

        fn ask(&mut self, request: Request) -> &mut Self {
            let reply = self.model.apply(&request, "t");
            self.claim(request, reply)
        }

        fn claim(&mut self, request: Request, reply: Reply) -> &mut Self {
            let asked_ns = self.now_ns;
            self.now_ns += 10;
            let answer = Some((self.now_ns, reply));
            self.history.exchanges.push(Exchange { asked_ns, request, answer });
            self
        }

        fn leave_unanswered(&mut self, request: Request, takes_effect: bool) -> &mut Self {
            if takes_effect {
                self.model.apply(&request, "t");
            }
            let asked_ns = self.now_ns;
            self.history.exchanges.push(Exchange { asked_ns, request, answer: None });
            self
        }

        fn work(&mut self, rounds: u64) -> &mut Self {
            for n in 0..rounds {
                self.ask(Request::Increment).ask(Request::Set { key: n });
                self.ask(Request::Get { key: n }).ask(Request::Push { item: n });
            }
            self
        }

        fn read_back(&mut self) -> Verdict {
            for request in self.history.read_back() {
                self.ask(request);
            }
            self.history.judge()
        }
    }

    #[test]
    fn an_honest_server_is_believed() {
        let verdict = Server::new().work(200).read_back();
        assert_eq!(verdict.contradictions, []);
        assert_eq!(verdict.unanswered, 0);
        assert!(verdict.replies > 800);
    }

    #[test]
    fn the_gap_over_a_moment_lies_between_the_replies_around_it() {
        let mut server = Server::new();
        server.work(1); // replies at 10, 20, 30, 40
        server.now_ns = 90;
        server.ask(Request::Increment); // asked at 90, answered at 100
        let gap = |at, end| server.history.gap_over(at, end);
        assert_eq!(gap(50, 500), Gap { from_ns: 40, to_ns: 100 });
        assert_eq!(gap(25, 500), Gap { from_ns: 20, to_ns: 30 });
        assert_eq!(gap(200, 500), Gap { from_ns: 100, to_ns: 500 });
        assert_eq!(History::new("t".into()).gap_over(7, 9), Gap { from_ns: 7, to_ns: 9 });
    }

    #[test]
    fn a_counter_that_goes_back_is_caught() {
        let mut server = Server::new();
        server.work(3);
        server.model.counter -= 1;
        server.ask(Request::Increment);
        assert_eq!(server.history.judge().contradictions.len(), 1);
    }

    #[test]
    fn a_counter_that_skips_is_caught() {
        let mut server = Server::new();
        server.work(3);
        server.model.counter += 1;
        server.ask(Request::Increment);
        assert_eq!(server.history.judge().contradictions.len(), 1);
    }

    #[test]
    fn a_confirmed_set_that_is_forgotten_is_caught_at_the_end() {
        let mut server = Server::new();
        server.work(100);
        server.model.keys.remove(&70);
        let verdict = server.read_back();
        assert_eq!(verdict.contradictions.len(), 1);
        assert!(verdict.contradictions[0].asked.contains("t:key:70"));
    }

    #[test]
    fn a_value_of_another_key_is_caught() {
        let mut server = Server::new();
        server.ask(Request::Set { key: 0 }).ask(Request::Set { key: 1 });
        server.model.keys.insert(0, value("t", 1));
        server.ask(Request::Get { key: 0 });
        assert_eq!(server.history.judge().contradictions.len(), 1);
    }

    #[test]
    fn a_list_item_lost_repeated_or_added_unasked_is_caught() {
        for tamper in [
            (|items| drop(items.pop())) as fn(&mut Vec<String>),
            |items| items.push(items[0].clone()),
            |items| items.swap(0, 1),
        ] {
            let mut server = Server::new();
            server.work(READ_BATCH as u64);
            tamper(&mut server.model.items);
            assert!(!server.read_back().contradictions.is_empty());
        }
    }

    #[test]
    fn an_error_reply_is_a_contradiction() {
        let mut server = Server::new();
        server.claim(Request::Increment, Reply::Error("OOM".into()));
        assert_eq!(server.history.judge().contradictions.len(), 1);
    }

    #[test]
    fn a_reply_that_was_never_given_may_have_taken_effect_or_not() {
        for takes_effect in [false, true] {
            let mut server = Server::new();
            server.work(2).leave_unanswered(Request::Increment, takes_effect);
            server.ask(Request::ReadCounter).ask(Request::Increment);
            let verdict = server.history.judge();
            assert_eq!(verdict.contradictions, []);
            assert_eq!(verdict.unanswered, 1);
        }
    }

    #[test]
    fn an_unanswered_request_cannot_have_done_first_one_then_the_other() {
        let mut server = Server::new();
        server.work(2).leave_unanswered(Request::Increment, true).ask(Request::ReadCounter);
        server.model.counter -= 1;
        server.ask(Request::ReadCounter);
        assert_eq!(server.history.judge().contradictions.len(), 1);
    }

    #[test]
    fn an_unanswered_request_excuses_no_other_loss() {
        let mut server = Server::new();
        server.work(5).leave_unanswered(Request::Increment, true);
        server.model.counter -= 2;
        server.ask(Request::ReadCounter);
        assert_eq!(server.history.judge().contradictions.len(), 1);
    }

    #[test]
    fn the_longest_gap_counts_a_silence_that_has_not_ended() {
        let mut server = Server::new();
        server.work(1);
        assert_eq!(server.history.longest_gap(1_000).length_ns(), 10);
        server.leave_unanswered(Request::Increment, false);
        assert_eq!(server.history.longest_gap(1_000), Gap { from_ns: 40, to_ns: 1_000 });
    }
}
