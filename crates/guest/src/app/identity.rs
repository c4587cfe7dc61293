//! `USER`: who the app runs as, by the image's own `/etc/passwd` and `/etc/group`. The rules are the ones of container
//! runtimes: a number need not be listed; a group that is named replaces the user's own and the supplementary ones.

use std::fs::File;
use std::io::{self, Read};

/// Largest `/etc/passwd` or `/etc/group` that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Largest user or group id, as container runtimes have it.
const ID_MAX: u32 = i32::MAX as u32;

/// Supplementary groups at most; the kernel's limit is 65,536.
const GROUPS_MAX: usize = 1024;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// User id.
    pub(super) uid: u32,
    /// Group id.
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    /// Home directory.
    pub(super) home: String,
}

/// Why `USER` names nobody.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// The user is neither listed nor a number.
    #[error("USER names the user {user:?}, which the image's /etc/passwd does not list")]
    NoUser {
        /// The user part.
        user: String,
    },
    /// The group is neither listed nor a number.
    #[error("USER names the group {group:?}, which the image's /etc/group does not list")]
    NoGroup {
        /// The group part.
        group: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path} of the image")]
    Read {
        /// The file.
        path: &'static str,
        #[source]
        source: io::Error,
    },
    /// The file is too large to be what its name says.
    #[error("{path} of the image is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: &'static str,
    },
}

/// Resolves `USER` with the files under the current root.
pub(super) fn resolve(user: &str) -> Result<Identity, IdentityError> {
    find(user, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn read(path: &'static str) -> Result<String, IdentityError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(source) => return Err(IdentityError::Read { path, source }),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|source| IdentityError::Read { path, source })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(IdentityError::TooLarge { path });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let (_comment, home) = (fields.next(), fields.next().unwrap_or_default());
        Some(User { name, uid, gid, home })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some(Group { name, gid: id(fields.next()?)?, members: fields.next().unwrap_or_default() })
    })
}

fn id(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|id| *id <= ID_MAX)
}

fn find(spec: &str, passwd: &str, group: &str) -> Result<Identity, IdentityError> {
    let (user, named_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let wanted = if user.is_empty() { "0" } else { user };
    let number = id(wanted);
    let found =
        users(passwd).find(|user| user.name == wanted).or_else(|| users(passwd).find(|user| Some(user.uid) == number));
    let (uid, own_gid, name, home) = match (found, number) {
        (Some(user), _) => (user.uid, user.gid, Some(user.name), user.home),
        (None, Some(uid)) => (uid, 0, None, ""),
        (None, None) => return Err(IdentityError::NoUser { user: wanted.to_owned() }),
    };
    let (gid, groups) = match named_group {
        Some(wanted) => (find_group(wanted, group)?, Vec::new()),
        None => (own_gid, name.map(|name| groups_of(name, group)).unwrap_or_default()),
    };
    let home = match home {
        "" if uid == 0 => "/root",
        "" => "/",
        home => home,
    };
    Ok(Identity { uid, gid, groups, home: home.to_owned() })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, IdentityError> {
    groups(group)
        .find(|group| group.name == wanted)
        .map(|group| group.gid)
        .or_else(|| id(wanted))
        .ok_or_else(|| IdentityError::NoGroup { group: wanted.to_owned() })
}

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    let is_member = |group: &Group<'_>| group.members.split(',').any(|member| member.trim() == name);
    groups(group).filter(is_member).map(|group| group.gid).take(GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::{Identity, IdentityError, find};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                          broken line\n\
                          big:x:99999999999:1::/:/bin/sh\n\
                          app:x:1000:1001:App,,,:/srv/app:/bin/sh\n\
                          1234:x:77:78::/named:/bin/sh\n\
                          homeless:x:1005:1005\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\nlogs:x:60: other , app\nno-id:x::app\napp:x:1001:\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        for (spec, expected) in [
            ("", identity(0, 0, &[], "/root")),
            ("root", identity(0, 0, &[], "/root")),
            ("0", identity(0, 0, &[], "/root")),
            ("app", identity(1000, 1001, &[50, 60], "/srv/app")),
            ("1000", identity(1000, 1001, &[50, 60], "/srv/app")),
            ("app:", identity(1000, 1001, &[50, 60], "/srv/app")),
            ("app:staff", identity(1000, 50, &[], "/srv/app")),
            ("app:4242", identity(1000, 4242, &[], "/srv/app")),
            ("4242", identity(4242, 0, &[], "/")),
            ("4242:4343", identity(4242, 4343, &[], "/")),
            (":staff", identity(0, 50, &[], "/root")),
            ("1234", identity(77, 78, &[], "/named")),
            ("homeless", identity(1005, 1005, &[], "/")),
        ] {
            assert_eq!(find(spec, PASSWD, GROUP).expect(spec), expected, "USER {spec:?}");
        }
    }

    #[test]
    fn an_image_without_the_files_still_has_root_and_numbers() {
        assert_eq!(find("", "", "").expect("root"), identity(0, 0, &[], "/root"));
        assert_eq!(find("7:8", "", "").expect("numbers"), identity(7, 8, &[], "/"));
    }

    #[test]
    fn who_is_not_there_is_named() {
        let error = find("nobody", PASSWD, GROUP).expect_err("no such user");
        assert!(error.to_string().contains("\"nobody\""), "{error}");
        assert!(matches!(find("app:wheel", PASSWD, GROUP), Err(IdentityError::NoGroup { group }) if group == "wheel"));
        assert!(matches!(find("big", PASSWD, GROUP), Err(IdentityError::NoUser { .. })));
        assert!(matches!(find("4294967295", PASSWD, GROUP), Err(IdentityError::NoUser { .. })));
    }
}
