//! What stands beside the engine of one VM: the sessions with its backup, made one after another.

mod datagrams;
mod sessions;

pub(crate) use self::{
    datagrams::Datagrams,
    sessions::{EngineEnd, keep_sessions},
};
