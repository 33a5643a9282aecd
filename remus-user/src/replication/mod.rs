//! Placeholder until the merge.
use remus_abi::Stamp;
pub struct Committed(Stamp);
impl Committed {
    pub fn stamp(&self) -> Stamp {
        self.0
    }
    pub fn test(s: Stamp) -> Self {
        Self(s)
    }
}
pub struct Fenced(());
impl Fenced {
    pub fn test() -> Self {
        Self(())
    }
}
