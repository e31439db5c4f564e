//! The id of a repository, by which its checkpoints are told from those of other repositories.

/// What is known of a repository's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The repository has none yet: no backup of this version was made into it.
    None,
    /// Its id, a UUID.
    Known(String),
    /// The file of the id cannot be used, with the reason.
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
