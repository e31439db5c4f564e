//! The id of a repository, which distinguishes its checkpoints from those of other repositories.

/// The state of a repository's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The repository has no id.
    None,
    /// Its id, a UUID.
    Known(String),
    /// The file of the id cannot be used, for this reason.
    Unusable(String),
}

impl Identity {
    /// The id, if it is known.
    pub fn id(&self) -> Option<&str> {
        match self {
            Identity::Known(id) => Some(id),
            Identity::None | Identity::Unusable(_) => None,
        }
    }
}
