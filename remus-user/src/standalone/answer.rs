//! The answers of the line protocol as text: `ok` and named values, or `error CODE` and words for people.
//!
//! Each answer is one line, whatever it contains. Names are part of the protocol: more may be added, and none changes its
//! meaning.

use std::fmt;

use remus_abi::gate::Mode;

use super::request::Malformed;
use crate::replication::Refused;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The request was followed.
    Ok(Vec<(&'static str, String)>),
    /// The request was not followed, and nothing has changed.
    Error { code: Code, text: String },
}

/// Why a request was not followed, in a form for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Code {
    /// The line is not a request, or a number is out of range.
    Syntax,
    /// The line is longer than a request can be; the connection ends.
    TooLong,
    /// No more clients are served; the connection ends.
    Busy,
    /// The gate does not hold, so there is no epoch to seal.
    NotHolding,
    /// The epoch that is to be committed is not below the open one.
    NotSealed,
    /// A later epoch is committed already.
    GoingBack,
    /// The gate was started without a lease, so there is none to renew; or the gate is to open, and its lease is over.
    Lease,
    /// The gate is not in front of its tap any more, or the tap is open in a way that cannot be guarded: pause the guest.
    GateLost,
    /// Released frames are still on their way: ask again.
    Pending,
    /// The kernel refuses something; the log says more.
    Failed,
}

impl Answer {
    /// Makes an `ok` with one value.
    pub(super) fn one(name: &'static str, value: impl fmt::Display) -> Self {
        Self::Ok(vec![(name, value.to_string())])
    }

    pub(super) fn error(code: Code, text: impl fmt::Display) -> Self {
        Self::Error { code, text: text.to_string() }
    }
}

impl From<Malformed> for Answer {
    fn from(malformed: Malformed) -> Self {
        Self::error(Code::Syntax, malformed.0)
    }
}

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Self {
        let code = match refused {
            Refused::NotHolding => Code::NotHolding,
            Refused::NotSealed { .. } => Code::NotSealed,
            Refused::GoingBack { .. } => Code::GoingBack,
            Refused::UsedUp => Code::Failed,
        };
        Self::error(code, refused)
    }
}

impl fmt::Display for Answer {
    /// Writes the answer without the line's end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(values) => {
                f.write_str("ok")?;
                values.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
            }
            Self::Error { code, text } => {
                let one_line = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
                write!(f, "error {} {one_line}", code.name())
            }
        }
    }
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::TooLong => "too-long",
            Self::Busy => "busy",
            Self::NotHolding => "not-holding",
            Self::NotSealed => "not-sealed",
            Self::GoingBack => "going-back",
            Self::Lease => "lease",
            Self::GateLost => "gate-lost",
            Self::Pending => "pending",
            Self::Failed => "failed",
        }
    }
}

/// Returns a mode's word, which is the same everywhere that people or programs read it.
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Closed => "closed",
        Mode::Hold => "hold",
        Mode::Open => "open",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_line_whatever_is_in_it() {
        let answer = Answer::error(Code::Failed, "run flush:\n  no such\r\n device");
        assert_eq!(answer.to_string(), "error failed run flush: no such device");
        assert_eq!(Answer::one("epoch", 7).to_string(), "ok epoch=7");
    }
}
