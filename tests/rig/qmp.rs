//! QEMU's machine protocol over a unix socket: commands and their answers, a JSON document a line, and events in
//! between, each with QEMU's own time.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// The longest that a command may take; object-add connects sockets.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that has agreed on its capabilities. Events are kept from then on.
#[derive(Debug)]
pub struct Qmp {
    to: OwnedWriteHalf,
    answers: UnboundedReceiver<Answer>,
    events: Arc<Mutex<Vec<Event>>>,
    reader: JoinHandle<()>,
}

/// Something that QEMU said by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub name: String,
    /// By the host's clock of the day, in microseconds.
    pub at_us: u64,
}

type Answer = Result<Value, Refusal>;

/// Why a command was not carried out, in QEMU's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// A line of QEMU's.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Message {
    Greeting,
    Answer(Answer),
    Event(Event),
}

impl Qmp {
    /// Connects as soon as QEMU listens.
    ///
    /// # Errors
    /// When it does not within `patience`, or says something else than QEMU would.
    pub async fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let until = Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= until => {
                    return Err(error).with_context(|| format!("connect to {}", socket.display()));
                }
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
        let (from, to) = stream.into_split();
        let (answer, answers) = unbounded_channel();
        let events = Arc::default();
        let reader = tokio::spawn(read(from, answer, Arc::clone(&events)));
        let mut qmp = Self { to, answers, events, reader };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Lets QEMU carry a command out, and gives what it returns.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        let exchange = async {
            self.to.write_all(line.as_bytes()).await?;
            self.answers.recv().await.context("QEMU has hung up")
        };
        match timeout(PATIENCE, exchange).await {
            Ok(answer) => answer?.with_context(|| format!("QEMU refused {line}")),
            Err(_) => bail!("QEMU does not answer {line}"),
        }
    }

    /// What it has said by itself so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Until QEMU hangs up or says what cannot be understood: then nothing waits for `answers` in vain.
async fn read(
    from: OwnedReadHalf,
    answers: UnboundedSender<Answer>,
    events: Arc<Mutex<Vec<Event>>>,
) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match parse(&line) {
            Some(Message::Greeting) => {}
            Some(Message::Event(event)) => {
                events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
            Some(Message::Answer(answer)) => {
                if answers.send(answer).is_err() {
                    return;
                }
            }
            None => return,
        }
    }
}

/// A line, or `None` for what is none of QEMU's.
fn parse(line: &str) -> Option<Message> {
    let mut message: Value = serde_json::from_str(line).ok()?;
    if message.get("QMP").is_some() {
        return Some(Message::Greeting);
    }
    if let Some(returned) = message.get_mut("return") {
        return Some(Message::Answer(Ok(returned.take())));
    }
    if let Some(error) = message.get("error") {
        let description = error.get("desc").and_then(Value::as_str)?;
        return Some(Message::Answer(Err(Refusal(description.to_owned()))));
    }
    let name = message.get("event")?.as_str()?.to_owned();
    let time = |unit: &str| message.get("timestamp")?.get(unit)?.as_u64();
    let at_us = time("seconds")? * 1_000_000 + time("microseconds")?;
    Some(Message::Event(Event { name, at_us }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_a_refusal_and_an_event_are_told_apart() {
        let greeting = r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Some(Message::Greeting));
        let answer = parse(r#"{"return": {"status": "colo"}}"#);
        assert_eq!(answer, Some(Message::Answer(Ok(json!({ "status": "colo" })))));
        let refusal = parse(r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#);
        assert_eq!(refusal, Some(Message::Answer(Err(Refusal("no such thing".to_owned())))));
        let event = r#"{"timestamp": {"seconds": 12, "microseconds": 34}, "event": "STOP"}"#;
        let stop = Event { name: "STOP".to_owned(), at_us: 12_000_034 };
        assert_eq!(parse(event), Some(Message::Event(stop)));
    }

    #[test]
    fn what_is_torn_or_no_message_is_not_taken_for_one() {
        for line in ["", "{", "[]", "{}", r#"{"event": "STOP"}"#, r#"{"error": {}}"#] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[tokio::test]
    async fn events_do_not_get_in_the_way_of_answers() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let qemu = async {
            let (stream, _) = listener.accept().await.unwrap();
            let (from, mut to) = stream.into_split();
            let mut lines = BufReader::new(from).lines();
            to.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            for (expected, answer) in [("qmp_capabilities", "{\"return\": {}}"), ("stop", STOPPED)]
            {
                let asked = lines.next_line().await.unwrap().unwrap();
                let asked: Value = serde_json::from_str(&asked).unwrap();
                assert_eq!(asked["execute"], expected);
                to.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
        };
        const STOPPED: &str = "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \
                               \"STOP\"}\n{\"return\": 7}";
        let client = async {
            let mut qmp = Qmp::connect(&socket, PATIENCE).await.unwrap();
            assert_eq!(qmp.execute("stop", json!({})).await.unwrap(), 7);
            qmp
        };
        let (qmp, ()) = tokio::join!(client, qemu);
        assert_eq!(qmp.events(), [Event { name: "STOP".to_owned(), at_us: 1_000_002 }]);
        // The far end has hung up.
        let mut qmp = qmp;
        assert!(qmp.execute("cont", json!({})).await.is_err());
    }
}
