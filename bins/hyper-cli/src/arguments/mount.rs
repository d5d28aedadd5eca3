//! `--mount` and `--volume` in Docker's forms.

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::bytes;

/// `type=bind,source=/a,target=/b,readonly` as the API has it.
pub fn mount(text: &str) -> anyhow::Result<Value> {
    let wrong = |why: String| anyhow::anyhow!("--mount `{text}`: {why}");
    let mut mount = json!({ "Type": "volume" });
    let (mut bind, mut volume, mut tmpfs) = (Map::new(), Map::new(), Map::new());
    let mut driver = Map::new();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        let flag = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(wrong(format!("`{value}` of {key} is neither true nor false"))),
        };
        let pair = || {
            let (name, text) = value.split_once('=').unwrap_or((value, ""));
            (name.to_owned(), json!(text))
        };
        let add = |map: &mut Map<String, Value>, name: &str| {
            let (key, value) = pair();
            let slot = map.entry(name).or_insert_with(|| json!({}));
            slot[key] = value;
        };
        match key {
            "type" => mount["Type"] = json!(value),
            "source" | "src" => mount["Source"] = json!(absolute(value)?),
            "target" | "dst" | "destination" => mount["Target"] = json!(value),
            "readonly" | "ro" => mount["ReadOnly"] = json!(flag()?),
            "consistency" => mount["Consistency"] = json!(value),
            "bind-propagation" => drop(bind.insert("Propagation".to_owned(), json!(value))),
            "bind-nonrecursive" => drop(bind.insert("NonRecursive".to_owned(), json!(flag()?))),
            "bind-create-src" => drop(bind.insert("CreateMountpoint".to_owned(), json!(flag()?))),
            "bind-recursive" => {
                let set = match value {
                    "enabled" => continue,
                    "disabled" => "NonRecursive",
                    "writable" => "ReadOnlyNonRecursive",
                    "readonly" => "ReadOnlyForceRecursive",
                    _ => return Err(wrong(format!("bind-recursive `{value}`"))),
                };
                bind.insert(set.to_owned(), json!(true));
            }
            "volume-nocopy" => drop(volume.insert("NoCopy".to_owned(), json!(flag()?))),
            "volume-subpath" => drop(volume.insert("Subpath".to_owned(), json!(value))),
            "volume-driver" => drop(driver.insert("Name".to_owned(), json!(value))),
            "volume-label" => add(&mut volume, "Labels"),
            "volume-opt" => add(&mut driver, "Options"),
            "tmpfs-size" => {
                let size = bytes(value).with_context(|| format!("--mount `{text}`"))?;
                tmpfs.insert("SizeBytes".to_owned(), json!(size));
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8)
                    .map_err(|_| wrong(format!("tmpfs-mode `{value}` is not octal")))?;
                tmpfs.insert("Mode".to_owned(), json!(mode));
            }
            _ => bail!("--mount `{text}`: unexpected key '{key}'"),
        }
    }
    if !driver.is_empty() {
        volume.insert("DriverConfig".to_owned(), driver.into());
    }
    for (name, options) in
        [("BindOptions", bind), ("VolumeOptions", volume), ("TmpfsOptions", tmpfs)]
    {
        if !options.is_empty() {
            mount[name] = options.into();
        }
    }
    if mount.get("Target").is_none() {
        return Err(wrong("target is required".to_owned()));
    }
    Ok(mount)
}

/// `./a:/b` is meant from here, not from where hyperd is.
pub fn bind(text: &str) -> anyhow::Result<String> {
    match text.split_once(':') {
        Some((source, rest)) => Ok(format!("{}:{rest}", absolute(source)?)),
        None => Ok(text.to_owned()),
    }
}

fn absolute(source: &str) -> anyhow::Result<String> {
    if source != "." && source != ".." && !source.starts_with("./") && !source.starts_with("../") {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).with_context(|| format!("path `{source}`"))?;
    path.to_str().map(str::to_owned).with_context(|| format!("path `{source}` is not UTF-8"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_key_has_its_place() {
        let text = "type=volume,src=v,dst=/d,ro,volume-nocopy,volume-driver=disk,\
                    volume-opt=size=1G,volume-label=a=b";
        assert_eq!(
            mount(text).unwrap(),
            json!({"Type": "volume", "Source": "v", "Target": "/d", "ReadOnly": true,
                "VolumeOptions": {"NoCopy": true, "Labels": {"a": "b"},
                    "DriverConfig": {"Name": "disk", "Options": {"size": "1G"}}}})
        );
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(tmpfs["TmpfsOptions"], json!({"SizeBytes": 1 << 20, "Mode": 0o1770}));
        for (bad, named) in
            [("type=bind,src=/a", "target"), ("dst=/a,x=y", "'x'"), ("dst=/a,ro=2", "`2`")]
        {
            assert!(mount(bad).unwrap_err().to_string().contains(named), "{bad}");
        }
        assert!(bind("./x:/y").unwrap().starts_with('/'));
        assert_eq!(bind("name:/y:ro").unwrap(), "name:/y:ro");
    }
}
