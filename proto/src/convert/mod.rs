//! Conversions between wire messages and core types, one file for each side of the conversation.

mod chunks;
mod entry;
mod open;
mod query;
mod refusal;
mod reply;
mod request;

pub use chunks::{placement_to_wire, servers_from_wire, servers_to_wire};
pub use entry::{decode_command_reply, decode_entry, encode_command_reply, encode_entry};
pub use open::{open_mode_from_wire, open_mode_to_wire};
pub use query::{answer_from_wire, answer_to_wire};
pub use refusal::{refusal_code, refusal_from_code};
pub use reply::{reply_from_wire, reply_to_wire};
pub use request::{client_command, mutation_to_wire};

/// A message that does not fit the contract.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConvertError {
    /// A part that must be there is not.
    #[error("message without {0}")]
    Missing(&'static str),
    /// A number outside its range or list.
    #[error("{what} has the unknown value {value}")]
    Value {
        /// The field.
        what: &'static str,
        /// What it held.
        value: u64,
    },
    /// Bytes of the wrong length.
    #[error("{what} is {length} bytes long")]
    Length {
        /// The field.
        what: &'static str,
        /// Its length.
        length: usize,
    },
    /// Bytes that are not a message.
    #[error("cannot be decoded: {0}")]
    Decode(String),
    /// An answer of another kind than the question asks for.
    #[error("answer does not fit the question")]
    Mismatch,
}

/// Narrows a wire integer.
pub(crate) fn narrow<T: TryFrom<u32>>(what: &'static str, value: u32) -> Result<T, ConvertError> {
    T::try_from(value).map_err(|_| ConvertError::Value { what, value: value.into() })
}

/// Unwraps a sub-message that must be there.
pub(crate) fn need<T>(what: &'static str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing(what))
}
