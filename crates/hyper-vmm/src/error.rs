//! Why a guest could not be made or changed.

use std::io;

/// Texts name the object; the adapter shows them to the user.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("{what} cannot be had: {why}")]
    Config { what: &'static str, why: String },
    #[error("KVM: {doing}")]
    Kvm { doing: &'static str, source: io::Error },
    #[error("the kernel cannot be loaded: {why}")]
    Kernel { why: String },
    #[error("the initramfs cannot be loaded: {why}")]
    Initramfs { why: String },
    #[error("guest memory: {doing}: {why}")]
    Memory { doing: &'static str, why: String },
    #[error("{device}: {doing}")]
    Device { device: String, doing: &'static str, source: io::Error },
    #[error("{doing}")]
    Io { doing: &'static str, source: io::Error },
}

impl VmmError {
    pub(crate) fn kvm(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { doing, source: io::Error::from_raw_os_error(error.errno()) }
    }

    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// The error and its sources in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            text.push_str(&format!(": {source}"));
            next = source.source();
        }
        text
    }
}
