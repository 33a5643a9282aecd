//! The table of kinds: which messages there are, where each travels, and what it carries.
//!
//! A row is `number Kind body`, and `if Feature` where the kind is one of a feature. The body is a `message`, the
//! struct of the same name, or `bytes`, which are decoded elsewhere. Rows stand in the block of the only lane on which
//! the kind travels; the block names the lane's longest body and the enum of its messages, which
//! [`lane`](super::lane) makes.

use super::Feature;

/// Longest body on a bulk connection.
pub const BODY_MAX: usize = 1 << 20;
/// Longest body on a control connection.
pub const CONTROL_BODY_MAX: usize = 1 << 16;

/// Gives the table to the macro `$then`.
macro_rules! table {
    ($then:ident) => {
        $then! {
            /// What the primary says on the control connection.
            lane ControlToBackup up to CONTROL_BODY_MAX => ToBackup {
                1 Hello message;
                2 Heartbeat message;
                3 Goodbye message;
                4 Inbound message;
            }
            /// What the backup says on the control connection.
            lane ControlToPrimary up to CONTROL_BODY_MAX => ToPrimary {
                16 Welcome message;
                17 Refuse message;
                18 HeartbeatAck message;
                19 GoodbyeAck message;
                20 StandDown message;
                21 Lacks message;
            }
            /// What the primary says on the bulk connection. Pages are decoded by `checkpoint::batch`, and written from where
            /// they are ([`head`](super::head)), as is the state.
            lane BulkToBackup up to BODY_MAX => BulkToBackup<'a> {
                32 Attach message;
                33 SyncPages bytes<'a>;
                34 Begin message;
                35 Pages bytes<'a>;
                36 State bytes<'a>;
                37 End message;
                38 BootPages bytes<'a>;
                39 BootState bytes<'a>;
            }
            /// What the backup says on the bulk connection.
            lane BulkToPrimary up to 64 => BulkToPrimary {
                48 Ack message;
            }
            /// A lane of no connection, for the test of a kind that is one of a feature.
            #[cfg(test)]
            lane Trial up to 64 => OnTrial {
                #[cfg(test)]
                64 Trial message if Trial;
            }
        }
    };
}
pub(super) use table;

/// Makes [`Kind`] and [`Lane`].
macro_rules! kinds {
    ($(
        $(#[doc = $doc:literal])*
        $(#[cfg($lane_cfg:meta)])?
        lane $lane:ident up to $body_max:expr => $messages:ident $(<$a:lifetime>)? {$(
            $(#[cfg($cfg:meta)])? $number:literal $kind:ident $body:ident $(<$b:lifetime>)? $(if $feature:ident)?;
        )*}
    )*) => {
        /// What a frame is. 0 is reserved: zeroed bytes are no frame.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u16)]
        pub enum Kind {$($(
            $(#[cfg($cfg)])? $kind = $number,
        )*)*}

        /// One direction of one connection.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Lane {$(
            $(#[doc = $doc])* $(#[cfg($lane_cfg)])? $lane,
        )*}

        impl Kind {
            /// Every kind, in the order of the table.
            pub const ALL: &'static [Self] = &[$($( $(#[cfg($cfg)])? Self::$kind, )*)*];

            pub(super) fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($( $(#[cfg($cfg)])? $number => Some(Self::$kind), )*)*
                    _ => None,
                }
            }

            /// Returns the only lane on which the kind travels.
            pub fn lane(self) -> Lane {
                match self {$($(
                    $(#[cfg($cfg)])? Self::$kind => Lane::$lane,
                )*)*}
            }

            /// Returns the feature without which the kind is refused.
            pub fn feature(self) -> Option<Feature> {
                match self {$($(
                    $(#[cfg($cfg)])? Self::$kind => feature_of!($($feature)?),
                )*)*}
            }
        }

        impl Lane {
            /// Returns the length of the longest body that may arrive on the lane.
            pub fn body_max(self) -> usize {
                match self {$(
                    $(#[cfg($lane_cfg)])? Self::$lane => $body_max,
                )*}
            }
        }
    };
}

macro_rules! feature_of {
    () => {
        None
    };
    ($feature:ident) => {
        Some(Feature::$feature)
    };
}

table!(kinds);
