//! The record of the VM on disk, as the engine keeps it.

use anyhow::Result;
use remus_abi::Term;

use crate::{
    names::VmName,
    store::{Record, Standing, Store},
};

pub(super) struct Recorder {
    store: Store,
    vm: VmName,
    /// What is on disk for certain.
    newest: Option<Record>,
}

impl Recorder {
    pub(super) fn new(store: Store, vm: VmName) -> Self {
        Self { store, vm, newest: None }
    }

    /// Writes the record, if it says something new; it is on disk when this returns.
    ///
    /// # Errors
    /// When it may not be on disk.
    pub(super) fn write(&mut self, term: Term, standing: Standing) -> Result<()> {
        let record = Record { term, standing, owner: None };
        if self.newest != Some(record) {
            self.store.write(&self.vm, record)?;
            self.newest = Some(record);
        }
        Ok(())
    }
}
