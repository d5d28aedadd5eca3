//! Failures as the supervisor gets them: a kind it can act on, and a text that names things.

use std::fmt::Display;

use hyper_link::message::{Failure, FailureKind};

/// Result of carrying out a request, or a part of it.
pub type Outcome<T> = Result<T, Failure>;

/// A failure of `kind` that says `message`.
pub fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}

/// The spec asks for something that is not done here.
pub fn unsupported(message: impl Into<String>) -> Failure {
    failure(FailureKind::Unsupported, message)
}

/// The request makes no sense.
pub fn invalid(message: impl Into<String>) -> Failure {
    failure(FailureKind::InvalidArgument, message)
}

/// Turns the error of a system call or parser into a failure that says what was being done.
pub trait Doing<T> {
    /// As [`FailureKind::Internal`]: `what` names the action and its object.
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T>
    where
        Self: Sized,
    {
        self.doing_as(FailureKind::Internal, what)
    }

    /// The same as `kind`.
    fn doing_as(self, kind: FailureKind, what: impl FnOnce() -> String) -> Outcome<T>;
}

/// A name that the image does not know.
pub fn unknown_user(error: &crate::user::Unknown) -> Failure {
    failure(FailureKind::UnknownUser, error.to_string())
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing_as(self, kind: FailureKind, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| failure(kind, format!("{}: {error}", what())))
    }
}
