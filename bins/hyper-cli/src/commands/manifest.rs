//! `apply` and `delete`: pods from manifest files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, bail};
use hyper::{Method, StatusCode};
use hyper_manifest::{ContainerPlan, Manifest, Plan, Pull};
use serde_json::{Value, json};

use super::container::filters;
use super::{pod, pull, uri};
use crate::arguments::ManifestFlags;
use crate::client::{Body, Client, ClientError, quote};

/// Label of volumes that go with their pod.
const OF_POD: &str = "io.hyper.pod";
/// Longest manifest in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Makes and starts every pod of the files; what cannot be finished is taken back.
pub async fn apply(client: &Client, flags: &ManifestFlags) -> anyhow::Result<i32> {
    let (manifest, uris) = read_all(flags)?;
    let mut fetched = BTreeMap::new();
    for uri in uris {
        let bytes = uri::read(&uri).await.with_context(|| format!("read `{uri}`"))?;
        fetched.insert(uri, bytes);
    }
    for plan in manifest.plans(&fetched)? {
        for container in &plan.containers {
            fetch(client, container).await?;
        }
        let id = pod::make(client, plan.pod.clone()).await?;
        let done = fill(client, &plan).await;
        if let Err(error) = done {
            if let Err(left) = remove(client, &id, &plan.name).await {
                eprintln!("hyper: pod {} is left: {left:#}", plan.name);
            }
            return Err(error.context(format!("pod {}", plan.name)));
        }
        client
            .post(&format!("/hyper/v1/pods/{id}/start"), Body::None)
            .await
            .with_context(|| format!("pod {} was made and not started", plan.name))?;
        println!("pod/{}", plan.name);
    }
    Ok(0)
}

/// Removes every pod of the files; one that is not there is as it should be.
pub async fn delete(client: &Client, flags: &ManifestFlags) -> anyhow::Result<i32> {
    let (manifest, uris) = read_all(flags)?;
    // What is in files is of no matter any more.
    let nothing = uris.into_iter().map(|uri| (uri, Vec::new())).collect();
    for plan in manifest.plans(&nothing)? {
        match remove(client, &plan.name, &plan.name).await {
            Ok(true) => println!("pod/{}", plan.name),
            Ok(false) => eprintln!("hyper: pod {} is not there", plan.name),
            Err(error) => return Err(error),
        }
    }
    Ok(0)
}

fn read_all(flags: &ManifestFlags) -> anyhow::Result<(Manifest, BTreeSet<String>)> {
    let mut manifest = Manifest::default();
    for file in &flags.file {
        let (name, text) = read(file)?;
        manifest.add(&name, &text)?;
    }
    let uris = manifest.uris();
    Ok((manifest, uris))
}

fn read(file: &Path) -> anyhow::Result<(String, String)> {
    let (name, mut source): (String, Box<dyn std::io::Read>) = match file.to_str() {
        Some("-") => ("standard input".to_owned(), Box::new(std::io::stdin().lock())),
        _ => {
            let name = file.display().to_string();
            let opened = std::fs::File::open(file).with_context(|| format!("open `{name}`"))?;
            (name, Box::new(opened))
        }
    };
    let mut text = String::new();
    let read = source.by_ref().take(MAX_BYTES + 1).read_to_string(&mut text);
    let bytes = read.with_context(|| format!("read `{name}`"))?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes > MAX_BYTES) {
        bail!("`{name}` has more than {} MiB: it is no manifest", MAX_BYTES >> 20);
    }
    Ok((name, text))
}

async fn fetch(client: &Client, container: &ContainerPlan) -> anyhow::Result<()> {
    let image = &container.image;
    let wanted = match container.pull {
        Pull::Always => true,
        Pull::Never => false,
        Pull::Missing => {
            let path = format!("/images/{}/json", quote(image).replace("%2F", "/"));
            match client.get(&path).await {
                Ok(_) => false,
                Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => true,
                Err(error) => return Err(error.into()),
            }
        }
    };
    if wanted {
        pull::pull(client, image, None, false, true).await?;
    }
    Ok(())
}

async fn fill(client: &Client, plan: &Plan) -> anyhow::Result<()> {
    for volume in &plan.volumes {
        let labels = json!({ (OF_POD): plan.name });
        let body = json!({ "Name": volume.name, "DriverOpts": volume.options, "Labels": labels });
        client.post("/volumes/create", Body::Json(body)).await?;
    }
    for container in &plan.containers {
        let path = format!("/containers/create?name={}", quote(&container.name));
        let answer = client.post(&path, Body::Json(container.body.clone())).await;
        let answer = answer.with_context(|| format!("container {}", container.name))?;
        for text in answer["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            eprintln!("hyper: warning: {text}");
        }
    }
    Ok(())
}

/// With its containers and the volumes that go with it; false when there is none.
async fn remove(client: &Client, pod: &str, name: &str) -> anyhow::Result<bool> {
    let path = format!("/hyper/v1/pods/{}", quote(pod));
    match client.json(Method::POST, &format!("{path}/stop"), Body::None).await {
        Ok(_) => {}
        Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    client.json(Method::DELETE, &format!("{path}?force=1"), Body::None).await?;
    let wanted = filters(&[format!("label={OF_POD}={name}")])?.unwrap_or_default();
    let found = client.get(&format!("/volumes?filters={wanted}")).await?;
    for volume in found["Volumes"].as_array().into_iter().flatten() {
        let volume = volume["Name"].as_str().unwrap_or_default();
        client.json(Method::DELETE, &format!("/volumes/{}", quote(volume)), Body::None).await?;
    }
    Ok(true)
}
