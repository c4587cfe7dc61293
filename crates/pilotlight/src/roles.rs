//! What a `pilotlight serve` does of what a server does.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// The roles of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    /// `control,host,edge`: a whole server.
    All,
    /// `control,host`: the API, and the microVMs.
    ControlAndHost,
    /// `edge`: their endpoints.
    Edge,
}

impl Roles {
    const WORDS: [(Self, &str); 3] =
        [(Self::All, "control,host,edge"), (Self::ControlAndHost, "control,host"), (Self::Edge, "edge")];
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, words) = Self::WORDS.iter().find(|(roles, _)| roles == self).expect("each has its words");
        f.write_str(words)
    }
}

impl FromStr for Roles {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let set = |text: &str| text.split(',').map(|word| word.trim().to_owned()).collect::<BTreeSet<_>>();
        let wanted = set(text);
        let found = Self::WORDS.iter().find(|(_, words)| set(words) == wanted);
        found.map(|(roles, _)| *roles).ok_or("not control,host,edge for a whole server, nor control,host, nor edge")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_in_any_order_and_in_these_sets_alone() {
        for (roles, words) in Roles::WORDS {
            assert_eq!((roles.to_string().parse(), words.parse()), (Ok(roles), Ok(roles)));
        }
        assert_eq!("edge, host,control".parse(), Ok(Roles::All));
        for bad in ["", "control", "host", "control,edge", "edge,", "edges", "control;host", "Edge"] {
            assert!(bad.parse::<Roles>().is_err_and(|error| error.contains("control,host")), "{bad}");
        }
    }
}
