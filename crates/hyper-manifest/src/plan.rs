//! What is to be asked of hyperd.

use std::collections::BTreeMap;

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
    /// Volumes that come and go with the pod.
    pub volumes: Vec<VolumePlan>,
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumePlan {
    pub name: String,
    /// `DriverOpts` of Docker's `POST /volumes/create`.
    pub options: BTreeMap<String, String>,
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
