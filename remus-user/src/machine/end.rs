//! How a guest ends.

/// How a guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It switched itself off.
    PowerOff,
    /// It said that it cannot go on.
    Crash,
    /// It wants to be started anew.
    Reset,
    /// It did what no machine can go on from (a triple fault, an instruction that cannot be emulated).
    Fault(String),
}
