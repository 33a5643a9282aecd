//! The record of the VM on disk, as the engine keeps it.

use anyhow::Result;

use crate::{
    names::VmName,
    store::{Record, Store},
};

pub(super) struct Recorder {
    store: Store,
    vm: VmName,
    /// What is on disk.
    newest: Record,
}

impl Recorder {
    /// `newest` is on disk.
    pub(super) fn new(store: Store, vm: VmName, newest: Record) -> Self {
        Self { store, vm, newest }
    }

    pub(super) fn vm(&self) -> &VmName {
        &self.vm
    }

    /// Writes what `change` makes of the record, if that says something new; it is on disk when this returns.
    ///
    /// # Errors
    /// When it may not be on disk.
    pub(super) fn write(&mut self, change: impl FnOnce(Record) -> Record) -> Result<()> {
        let record = change(self.newest.clone());
        if self.newest != record {
            self.store.write(&self.vm, &record)?;
            self.newest = record;
        }
        Ok(())
    }
}
