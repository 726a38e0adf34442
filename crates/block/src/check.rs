//! What checks and repairs of all formats have in common.

/// How much is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Space that is not in use is given back. An image with errors is refused.
    Leaks,
    /// Errors too.
    All,
}
