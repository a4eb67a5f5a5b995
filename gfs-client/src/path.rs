//! Paths, for tools that have no kernel to walk them.

use crate::calls::Looked;
use crate::client::Client;
use crate::error::ClientError;
use crate::limit::CallContext;
use gfs_core::ids::{InodeId, ROOT};
use gfs_core::meta::request::{Attributes, DirectoryEntry, FileType, NodeKind, Refusal};

/// Symbolic links that one path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;
/// Entries of a directory asked for at a time.
const PAGE: u32 = 1000;

/// Where a path leads.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory that holds the last name; of the root the root itself.
    pub parent: InodeId,
    /// The last name; empty for the root.
    pub name: Vec<u8>,
    /// What is there, if anything.
    pub attributes: Option<Attributes>,
}

/// What a path names; links are followed, the last one too.
///
/// # Errors
/// `Refused(NotFound)`, `Refused(NotDirectory)`, `TooManyLinks`; as every call.
pub async fn resolve(
    client: &Client,
    context: &CallContext,
    path: impl AsRef<[u8]>,
) -> Result<Attributes, ClientError> {
    locate(client, context, path, true).await?.attributes.ok_or(ClientError::Refused(Refusal::NotFound))
}

/// As `resolve`, but a link at the end is answered itself.
///
/// # Errors
/// As `resolve`.
pub async fn resolve_link(
    client: &Client,
    context: &CallContext,
    path: impl AsRef<[u8]>,
) -> Result<Attributes, ClientError> {
    locate(client, context, path, false).await?.attributes.ok_or(ClientError::Refused(Refusal::NotFound))
}

/// Walks a path from the root; its last name may be absent. With `follow`, a link at the end is followed.
///
/// # Errors
/// As `resolve`; an absent name is an error only in the middle.
pub async fn locate(
    client: &Client,
    context: &CallContext,
    path: impl AsRef<[u8]>,
    follow: bool,
) -> Result<Place, ClientError> {
    let root = client.get_attributes(context, ROOT).await?.0;
    let at_root = || Place { parent: ROOT, name: Vec::new(), attributes: Some(root.clone()) };
    let follow = follow || path.as_ref().ends_with(b"/");
    let (mut todo, mut links, mut place) = (names_of(path.as_ref()), 0, at_root());
    while let Some(name) = todo.pop() {
        let Some(here) = place.attributes.take() else { return Err(Refusal::NotFound.into()) };
        if here.file_type != FileType::Directory {
            return Err(Refusal::NotDirectory.into());
        }
        let found = match client.look_up(context, here.inode, &name).await? {
            Looked::Found(found, _) => Some(found),
            Looked::Absent(_) => None,
        };
        let link = found.as_ref().filter(|found| found.file_type == FileType::Symlink && (follow || !todo.is_empty()));
        if let Some(link) = link {
            links += 1;
            if links > MAX_LINKS {
                return Err(ClientError::TooManyLinks);
            }
            let (target, _) = client.read_link(context, link.inode).await?;
            place = if target.starts_with(b"/") { at_root() } else { Place { attributes: Some(here), ..place } };
            todo.extend(names_of(&target));
            continue;
        }
        place = Place { parent: here.inode, name, attributes: found };
    }
    Ok(place)
}

/// Makes a directory with all that are missing above it; one that is there is answered as it is.
///
/// # Errors
/// `Refused(NotDirectory)` when something else is in the way; as every call.
pub async fn make_directories(
    client: &Client,
    context: &CallContext,
    path: impl AsRef<[u8]>,
    mode: u16,
    umask: u16,
) -> Result<Attributes, ClientError> {
    let path = path.as_ref();
    let mut upto = 0;
    let mut last = client.get_attributes(context, ROOT).await?.0;
    while upto < path.len() {
        let next =
            path[upto..].iter().skip(1).position(|byte| *byte == b'/').map_or(path.len(), |slash| upto + 1 + slash);
        upto = next;
        let place = locate(client, context, &path[..upto], true).await?;
        last = match place.attributes {
            Some(found) => found,
            None => make_one(client, context, &place, mode, umask).await?,
        };
        if last.file_type != FileType::Directory {
            return Err(Refusal::NotDirectory.into());
        }
    }
    Ok(last)
}

async fn make_one(
    client: &Client,
    context: &CallContext,
    place: &Place,
    mode: u16,
    umask: u16,
) -> Result<Attributes, ClientError> {
    match client.create(context, place.parent, &place.name, NodeKind::Directory, mode, umask).await {
        Ok((made, _)) => Ok(made),
        // Somebody else was faster.
        Err(ClientError::Refused(Refusal::Exists)) => Ok(client.lookup(context, place.parent, &place.name).await?.0),
        Err(error) => Err(error),
    }
}

/// All entries of a directory but `.` and `..`.
///
/// # Errors
/// As every call.
pub async fn list(
    client: &Client,
    context: &CallContext,
    directory: InodeId,
) -> Result<Vec<DirectoryEntry>, ClientError> {
    let (mut all, mut cookie) = (Vec::new(), 0);
    loop {
        let (entries, end, _) = client.read_directory(context, directory, cookie, PAGE).await?;
        let last = entries.last().map(|entry| entry.cookie);
        all.extend(entries.into_iter().filter(|entry| entry.name != b"." && entry.name != b".."));
        match last {
            // A page that does not move on would be asked for for ever.
            Some(last) if !end && last != cookie => cookie = last,
            _ => return Ok(all),
        }
    }
}

/// Everything below a directory, each before what is in it, with its path relative to the directory. `visit` may refuse to go on.
///
/// # Errors
/// As every call, and what `visit` says.
pub async fn walk(
    client: &Client,
    context: &CallContext,
    directory: InodeId,
    mut visit: impl FnMut(&[u8], &DirectoryEntry) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut todo = vec![(directory, Vec::new())];
    while let Some((inode, prefix)) = todo.pop() {
        for entry in list(client, context, inode).await? {
            let path = [prefix.as_slice(), &entry.name].concat();
            visit(&path, &entry)?;
            if entry.attributes.file_type == FileType::Directory {
                todo.push((entry.attributes.inode, [path.as_slice(), b"/"].concat()));
            }
        }
    }
    Ok(())
}

/// Removes a name with everything below it. What others remove meanwhile is no error; what they add is removed too, as long as it takes.
///
/// # Errors
/// As every call.
pub async fn remove_tree(
    client: &Client,
    context: &CallContext,
    parent: InodeId,
    name: &[u8],
) -> Result<(), ClientError> {
    let top = client.lookup(context, parent, name).await?.0;
    if top.file_type != FileType::Directory {
        return client.unlink(context, parent, name).await;
    }
    // Directories to empty: (its own number, its parent, its name). The last is emptied first.
    let mut todo = vec![(top.inode, parent, name.to_vec())];
    while let Some((inode, parent, name)) = todo.last().cloned() {
        context.limit.check("remove")?;
        let mut below = Vec::new();
        for entry in absent_is_fine(list(client, context, inode).await, Vec::new)? {
            if entry.attributes.file_type == FileType::Directory {
                below.push((entry.attributes.inode, inode, entry.name));
            } else {
                absent_is_fine(client.unlink(context, inode, &entry.name).await, || ())?;
            }
        }
        if below.is_empty() {
            match client.rmdir(context, parent, &name).await {
                Ok(()) | Err(ClientError::Refused(Refusal::NotFound)) => {
                    todo.pop();
                }
                Err(ClientError::Refused(Refusal::NotEmpty)) => {}
                Err(error) => return Err(error),
            }
        } else {
            todo.extend(below);
        }
    }
    Ok(())
}

fn absent_is_fine<T>(result: Result<T, ClientError>, instead: impl FnOnce() -> T) -> Result<T, ClientError> {
    match result {
        Err(ClientError::Refused(Refusal::NotFound | Refusal::Stale)) => Ok(instead()),
        other => other,
    }
}

/// The parts of a path, last first, so that the next one is popped.
fn names_of(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart_last_first() {
        assert_eq!(names_of(b"//a/./b/../c/"), [b"c".to_vec(), b"..".to_vec(), b"b".to_vec(), b"a".to_vec()]);
        assert!(names_of(b"/").is_empty());
    }
}
