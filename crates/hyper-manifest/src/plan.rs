//! What is to be asked of hyperd.

use serde_json::Value;

/// A pod and its containers.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Of the pod; its containers are called `NAME-CONTAINER`.
    pub name: String,
    /// Body of `POST /hyper/v1/pods`.
    pub pod: Value,
    /// In the order in which they are to be made; those with `init` first.
    pub containers: Vec<ContainerPlan>,
    /// Names of the volumes that come and go with the pod.
    pub volumes: Vec<String>,
}

/// A container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerPlan {
    pub name: String,
    pub image: String,
    pub pull: Pull,
    /// Body of Docker's `POST /containers/create`.
    pub body: Value,
}

/// When its image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    Always,
    Missing,
    Never,
}
