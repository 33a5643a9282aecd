//! What an operator orders a running VM to do, by its socket.

use tokio::sync::oneshot;

/// An order, as a line: `unprotect HOST`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Go on without a backup: the host of the old one is off, on the operator's word.
    Unprotect { host_off: String },
}

/// An order on its way to whoever follows it.
#[derive(Debug)]
pub struct Asked {
    pub order: Order,
    /// What was done, or why nothing was; in words.
    pub answer: oneshot::Sender<Result<String, String>>,
}

impl Order {
    /// Longest name of a host in an order, in bytes.
    pub const HOST_MAX: usize = 64;

    pub(super) fn line(&self) -> String {
        match self {
            Self::Unprotect { host_off } => format!("unprotect {host_off}\n"),
        }
    }

    /// The order that these words are. `None` when they are none.
    pub(super) fn parse(words: &[&str]) -> Option<Self> {
        match words {
            ["unprotect", host] if host.len() <= Self::HOST_MAX => {
                Some(Self::Unprotect { host_off: (*host).to_owned() })
            }
            _ => None,
        }
    }
}

impl Asked {
    /// Answers. Nobody is told once the asker has gone.
    pub fn answer(self, answer: Result<String, String>) {
        self.answer.send(answer).ok();
    }
}
