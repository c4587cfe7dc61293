//! Links for people, beyond the service: a token in a URL becomes a cookie, so that a browser can show a microVM's page. Only
//! where the image allows it; elsewhere link and cookie mean nothing. No I/O, no clock.
//!
//! A cookie comes along with whatever page has the browser make a request, a token in a header does not. So a request with
//! a cookie is asked which page it is from (`stranger`): pages of other microVMs are as strange as any, though a browser
//! takes all endpoints of a domain for one site.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    refusal::Refusal,
    route::{self, Host},
};

/// Where links lead, which no app is likely to have. A request for it with a token in a header goes to the app.
pub(crate) const PATH: &str = "/.pilotlight/open";

/// Browsers take a cookie of this prefix from HTTPS alone, for this one host and all of its paths, so no other endpoint's
/// app can set it here.
const COOKIE: &str = "__Host-pilotlight";

/// A browser keeps no cookie whose name and value are longer together (RFC 6265bis, 5.6).
const COOKIE_BYTES_MAX: usize = 4096;

/// What is not written as it is in `Location`.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const DESTINATION: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// A path that a link cannot lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a link leads to a path that begins with one slash, without backslashes and control characters")]
pub struct LinkError;

/// The link to a path of an endpoint (a host, with a port if it is not HTTPS's own), with a token for it.
pub fn link(endpoint: &str, token: &str, to: &str) -> Result<String, LinkError> {
    if !is_path(to) {
        return Err(LinkError);
    }
    let to = if to == "/" { String::new() } else { format!("&to={}", utf8_percent_encode(to, NON_ALPHANUMERIC)) };
    Ok(format!("https://{endpoint}{PATH}?token={token}{to}"))
}

/// Is this a path, with a query perhaps, to a browser too? To them a backslash is a slash, two slashes begin a host's name,
/// and some control characters are not there.
fn is_path(to: &str) -> bool {
    to.starts_with('/') && !to.starts_with("//") && !to.contains(|it: char| it == '\\' || it.is_control())
}

/// The only value of a name in a query.
fn value<'a>(query: &'a str, name: &str) -> Result<Option<&'a str>, ()> {
    let mut values = query.split('&').filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(()),
        (value, None) => Ok(value),
    }
}

/// The token of a link.
pub(crate) fn token<'u>(method: &Method, uri: &'u Uri) -> Option<&'u str> {
    let is_link = method == Method::GET && uri.path() == PATH;
    value(uri.query().filter(|_| is_link)?, "token").ok().flatten()
}

/// What a good link is answered with. `seconds` are those that its token is good for yet.
pub(crate) fn opened(uri: &Uri, token: &str, seconds: u64) -> Result<Response<()>, Refusal> {
    let malformed = Refusal::Malformed("the link's 'to' is no path of this endpoint, such as /page");
    let Ok(to) = value(uri.query().unwrap_or_default(), "to") else { return Err(malformed) };
    let to = match to.map(|to| percent_decode_str(to).decode_utf8()) {
        None => Cow::Borrowed("/"),
        Some(Ok(to)) if is_path(&to) => to,
        Some(_) => return Err(malformed),
    };
    if COOKIE.len() + token.len() > COOKIE_BYTES_MAX {
        return Err(Refusal::Malformed("the link's token is too long for a cookie; it should name fewer ports"));
    }
    let cookie = format!("{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}");
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Refusal::Malformed("the link is no plain text"));
    let mut cookie = value(&cookie)?;
    cookie.set_sensitive(true);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(&utf8_percent_encode(&to, ESCAPED).to_string())?);
    headers.insert(header::SET_COOKIE, cookie);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Why a request with the cookie may be another page's idea than the endpoint's own; `None` if it is the endpoint's, or its
/// user's who goes there. `upgrades`: it asks for another protocol, which the answer to is not kept from strange pages.
pub(crate) fn stranger(method: &Method, headers: &HeaderMap, host: &Host<'_>, upgrades: bool) -> Option<&'static str> {
    let text = |name| route::single(headers, &name).map(|value| value.map(|value| value.to_str().unwrap_or_default()));
    let (Ok(site), Ok(mode), Ok(destination), Ok(origin)) =
        (text(SITE), text(MODE), text(DESTINATION), text(header::ORIGIN))
    else {
        return Some("a field that says where it is from is there twice");
    };
    match site {
        Some("same-origin" | "none") => {}
        // A link on another page leads here, into a tab and not into a frame.
        Some(_)
            if method == Method::GET && !upgrades && mode == Some("navigate") && destination == Some("document") => {}
        Some(_) => return Some("it is from another site's page"),
        // A browser too old to say tells the origin of what might change something.
        None if origin.is_none() && (upgrades || !matches!(*method, Method::GET | Method::HEAD)) => {
            return Some("it does not say which page it is from");
        }
        None => {}
    }
    match origin {
        None => None,
        // Pages that hide where they are from say this to themselves too.
        Some("null") if site == Some("same-origin") => None,
        Some(origin) if is_origin_of(origin, host) => None,
        Some(_) => Some("it is from a page of another origin"),
    }
}

fn is_origin_of(origin: &str, host: &Host<'_>) -> bool {
    const HTTPS: u16 = 443;
    let origin = origin.strip_prefix("https://").and_then(route::parse_host);
    origin.is_some_and(|it| it.name == host.name && it.port.unwrap_or(HTTPS) == host.port.unwrap_or(HTTPS))
}

/// Name and value, as a browser takes them apart.
fn pair(cookie: &[u8]) -> (&[u8], &[u8]) {
    match cookie.iter().position(|byte| *byte == b'=') {
        Some(at) => (cookie[..at].trim_ascii(), cookie[at + 1..].trim_ascii()),
        None => (b"", cookie.trim_ascii()),
    }
}

fn is_own(cookie: &[u8]) -> bool {
    pair(cookie).0 == COOKIE.as_bytes()
}

fn cookies(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b';')
}

/// The token in the cookie. Of several none counts, as it is with headers.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let mut found = headers.get_all(header::COOKIE).iter().flat_map(cookies).filter(|cookie| is_own(cookie));
    let cookie = found.next().filter(|_| found.next().is_none())?;
    std::str::from_utf8(pair(cookie).1).ok()
}

/// Takes the cookie out of a request. The others stay as they are.
pub(crate) fn strip_cookie(headers: &mut HeaderMap) {
    if !headers.get_all(header::COOKIE).iter().flat_map(cookies).any(is_own) {
        return;
    }
    let rest = |value: &HeaderValue| {
        let rest: Vec<_> = cookies(value).filter(|cookie| !is_own(cookie)).collect();
        let rest = rest.join(&b';').trim_ascii().to_vec();
        (!rest.is_empty()).then(|| HeaderValue::from_bytes(&rest).expect("it is part of a value"))
    };
    let rest: Vec<_> = headers.get_all(header::COOKIE).iter().filter_map(rest).collect();
    headers.remove(header::COOKIE);
    for value in rest {
        headers.append(header::COOKIE, value);
    }
}

/// Takes out of an app's answer what would set the cookie.
pub(crate) fn strip_set_cookie(headers: &mut HeaderMap) {
    let sets = |value: &HeaderValue| {
        let (name, value) = pair(cookies(value).next().unwrap_or_default());
        // A cookie without a name is sent as its value alone, which then reads as a name and a value.
        name == COOKIE.as_bytes() || (name.is_empty() && value.starts_with(COOKIE.as_bytes()))
    };
    if !headers.get_all(header::SET_COOKIE).iter().any(sets) {
        return;
    }
    let rest: Vec<_> = headers.get_all(header::SET_COOKIE).iter().filter(|value| !sets(value)).cloned().collect();
    headers.remove(header::SET_COOKIE);
    for value in rest {
        headers.append(header::SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(to: &str) -> Option<String> {
        let uri = format!("{PATH}?token=t&to={}", utf8_percent_encode(to, NON_ALPHANUMERIC));
        let response = opened(&uri.parse().unwrap(), "t", 1).ok()?;
        Some(response.headers()[header::LOCATION].to_str().unwrap().to_owned())
    }

    #[test]
    fn a_link_leads_to_a_path_of_its_endpoint() {
        for (to, there) in [
            ("/", "/"),
            ("/a/b?c=d&e=%20f#g", "/a/b?c=d&e=%20f#g"),
            ("/a b\"é", "/a%20b%22%C3%A9"),
            ("/https://elsewhere/", "/https://elsewhere/"),
        ] {
            assert_eq!(location(to).as_deref(), Some(there));
            let link = link("h:1", "a.b", to).unwrap();
            let uri: Uri = link.parse().unwrap();
            assert_eq!((token(&Method::GET, &uri), uri.host()), (Some("a.b"), Some("h")));
            assert_eq!(opened(&uri, "a.b", 1).unwrap().headers()[header::LOCATION], there);
        }
        for bad in
            ["", "x", "//h", "///h", "/\\h", "\\\\h", "/a\\b", "https://h/", "/\t/h", "/\n", "\t//h", " /", "/\u{85}"]
        {
            assert_eq!(location(bad), None, "{bad:?}");
            assert_eq!(link("h", "t", bad), Err(LinkError), "{bad:?}");
        }
        for bad in ["to=/a&to=/b", "to=%FF", "to="] {
            assert!(opened(&format!("{PATH}?{bad}").parse().unwrap(), "t", 1).is_err(), "{bad}");
        }
        assert_eq!(opened(&PATH.parse().unwrap(), "t", 1).unwrap().headers()[header::LOCATION], "/");
    }

    #[test]
    fn a_link_is_a_get_with_one_token() {
        let token = |method: Method, uri: &str| token(&method, &uri.parse().unwrap()).map(str::to_owned);
        assert_eq!(token(Method::GET, "/.pilotlight/open?to=/&token=a.b").as_deref(), Some("a.b"));
        for uri in ["/?token=a", "/.pilotlight/open", "/.pilotlight/open?atoken=a", "/.pilotlight/open/?token=a"] {
            assert_eq!(token(Method::GET, uri), None, "{uri}");
        }
        assert_eq!(token(Method::GET, "/.pilotlight/open?token=a&token=b"), None);
        assert_eq!(token(Method::POST, "/.pilotlight/open?token=a"), None);
    }

    #[test]
    fn the_cookie_is_as_long_as_browsers_take() {
        let opened = |length: usize| opened(&PATH.parse().unwrap(), &"x".repeat(length), 9);
        let longest = COOKIE_BYTES_MAX - COOKIE.len();
        let response = opened(longest).unwrap();
        assert_eq!(response.status(), 303);
        let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
        let rest = cookie.strip_prefix(&format!("__Host-pilotlight={}; ", "x".repeat(longest))).unwrap();
        assert_eq!(rest, "Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=9");
        assert!(matches!(opened(longest + 1), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn only_the_endpoints_own_pages_and_its_user_are_no_strangers() {
        let host = Host { name: "h.localhost".into(), port: Some(4443) };
        let own = ("origin", "https://h.localhost:4443");
        let (navigate, document) = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"));
        let site = |site: &'static str| ("sec-fetch-site", site);
        let is_stranger = |method: Method, upgrades, pairs: &[(&'static str, &'static str)]| {
            let pairs =
                pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            stranger(&method, &pairs.collect(), &host, upgrades).is_some()
        };
        for pairs in [
            &[site("same-origin"), own][..],
            &[site("same-origin"), ("origin", "null")],
            &[site("same-origin")],
            &[site("none"), navigate, document],
            &[own],
        ] {
            assert!(!is_stranger(Method::GET, false, pairs), "{pairs:?}");
            assert!(!is_stranger(Method::POST, false, pairs), "{pairs:?}");
            assert!(!is_stranger(Method::GET, true, pairs), "{pairs:?}");
        }
        // Led here by a link, and by a browser too old to say.
        for pairs in [&[site("cross-site"), navigate, document][..], &[site("same-site"), navigate, document], &[]] {
            assert!(!is_stranger(Method::GET, false, pairs), "{pairs:?}");
            assert!(is_stranger(Method::POST, false, pairs), "{pairs:?}");
            assert!(is_stranger(Method::GET, true, pairs), "{pairs:?}");
        }
        for pairs in [
            &[site("cross-site")][..],
            &[site("same-site"), ("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")],
            &[site("same-site"), navigate, ("sec-fetch-dest", "iframe")],
            &[site("cross-site"), navigate],
            &[site("cross-site"), own],
            &[site("odd")],
            &[site("same-origin"), site("cross-site")],
            &[site("same-origin"), ("origin", "https://h.localhost")],
            &[site("cross-site"), navigate, document, ("origin", "https://other.localhost:4443")],
            &[("origin", "null")],
            &[("origin", "http://h.localhost:4443")],
            &[("origin", "https://h.localhost:4444")],
            &[("origin", "https://h.localhost:4443.evil")],
            &[("origin", "https://x@h.localhost:4443")],
            &[own, own],
        ] {
            assert!(is_stranger(Method::GET, false, pairs), "{pairs:?}");
        }
    }

    fn with(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn the_cookie_is_read_and_goes_and_the_others_stay() {
        for (before, token, after) in [
            (&["__Host-pilotlight=a.b"][..], Some("a.b"), &[][..]),
            (&["a=1; __Host-pilotlight=t; b=\"2\""], Some("t"), &["a=1; b=\"2\""]),
            (&["__Host-pilotlight = t ;b=2;c"], Some("t"), &["b=2;c"]),
            (&["a=1", "__Host-pilotlight=t", "b=2"], Some("t"), &["a=1", "b=2"]),
            (&["__Host-pilotlight=t; __Host-pilotlight=u; c=3"], None, &["c=3"]),
            (&["__Host-pilotlight=t", "__Host-pilotlight=u"], None, &[]),
            (
                &["__host-pilotlight=t; x__Host-pilotlight=u;  y "],
                None,
                &["__host-pilotlight=t; x__Host-pilotlight=u;  y "],
            ),
            (&[], None, &[]),
        ] {
            let mut headers = with(header::COOKIE, before);
            assert_eq!(cookie(&headers), token, "{before:?}");
            strip_cookie(&mut headers);
            assert_eq!(headers, with(header::COOKIE, after), "{before:?}");
        }
    }

    #[test]
    fn an_app_cannot_set_it() {
        let mut headers = with(
            header::SET_COOKIE,
            &[
                "a=__Host-pilotlight=1",
                "__Host-pilotlight=x; Path=/; Secure",
                " __Host-pilotlight\t=",
                "=__Host-pilotlight=x",
                "__Host-pilotlight",
                "__Host-pilotlights=1",
                "b=2; __Host-pilotlight=x",
            ],
        );
        strip_set_cookie(&mut headers);
        let left = ["a=__Host-pilotlight=1", "__Host-pilotlights=1", "b=2; __Host-pilotlight=x"];
        assert_eq!(headers, with(header::SET_COOKIE, &left));
    }

    proptest! {
        /// As a browser reads it: the library is the standard's own algorithm.
        #[test]
        fn no_link_leads_away(to in "(/|\\\\|\\.|:|@|\t|\n|%2f|%5c|https:|evil\\.test|\\PC){0,12}") {
            let base = url::Url::parse("https://h.localhost:4443/.pilotlight/open?token=t").unwrap();
            if let Some(location) = location(&to) {
                prop_assert_eq!(base.join(&location).unwrap().origin(), base.origin());
            }
            // And as it was sent, without being encoded for the way.
            if let Ok(uri) = format!("{PATH}?token=t&to={to}").parse::<Uri>()
                && let Ok(response) = opened(&uri, "t", 1)
            {
                let location = response.headers()[header::LOCATION].to_str().unwrap();
                prop_assert_eq!(base.join(location).unwrap().origin(), base.origin());
            }
        }

        #[test]
        fn nothing_of_the_cookie_is_left_and_nothing_else_is_lost(
            given in proptest::collection::vec("(__Host-pilotlight=[a-z.]{0,3}|[a-z_]{1,3}=[ -:<-~]{0,4}|[ a-z]{0,3})", 0..8),
            spread: bool,
        ) {
            let values = if spread { given.clone() } else { vec![given.join(";")] };
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let mut headers = with(header::COOKIE, &values);
            strip_cookie(&mut headers);
            prop_assert_eq!(cookie(&headers), None);
            let kept = |headers: &HeaderMap| -> Vec<String> {
                let all = headers.get_all(header::COOKIE).iter().flat_map(cookies);
                let all = all.map(|cookie| String::from_utf8(cookie.trim_ascii().to_vec()).unwrap());
                all.filter(|cookie| !cookie.is_empty() && !is_own(cookie.as_bytes())).collect()
            };
            prop_assert_eq!(kept(&headers), kept(&with(header::COOKIE, &values)));
        }
    }
}
