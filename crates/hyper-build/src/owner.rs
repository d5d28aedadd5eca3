//! `--chown`, `--chmod`: names looked up in the image that is being built.

use hyper_erofs::NodeKind;

use crate::tree::View;

/// Longest `/etc/passwd` that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// User and group of new files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// `user`, `uid`, `user:group` … `Err` says what is not known.
pub(crate) fn owner(text: &str, image: &View<'_>) -> Result<Owner, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, primary) = match user.parse::<u32>() {
        // As Docker: a number is its own group too, whatever the password file says.
        Ok(uid) => (uid, uid),
        Err(_) => {
            let fields = entry(image, "etc/passwd", user)
                .ok_or_else(|| format!("unable to find user {user} in the image's /etc/passwd"))?;
            let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
            number(2)
                .zip(number(3))
                .ok_or_else(|| format!("user {user} has no numbers in the image's /etc/passwd"))?
        }
    };
    let gid = match group {
        None | Some("") => primary,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => entry(image, "etc/group", group)
                .and_then(|fields| fields.get(2)?.parse().ok())
                .ok_or_else(|| format!("unable to find group {group} in the image's /etc/group"))?,
        },
    };
    Ok(Owner { uid, gid })
}

/// `755`, `0644`.
pub(crate) fn mode(text: &str) -> Result<u16, String> {
    u16::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777 && !text.starts_with('+'))
        .ok_or_else(|| format!("--chmod={text}: not an octal mode such as 755"))
}

/// The fields of a line of a colon-separated file.
fn entry(image: &View<'_>, path: &str, name: &str) -> Option<Vec<String>> {
    let NodeKind::File { layer, data } = image.resolve(path.as_bytes()).ok()?.node?.kind else {
        return None;
    };
    let bytes = image.source.read(layer, data, MAX_FILE).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split(':').map(str::to_owned).collect())
}
