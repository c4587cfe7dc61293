//! The WebSocket subprotocols that endpoints know: browsers can set no headers, and say here what others say there.

/// Says that the next two may be meant for the endpoint. Without it they are not looked at.
pub const MARKER: &str = "lambda-microvms";

/// Begins the one that carries the token.
pub const AUTHENTICATION: &str = "lambda-microvms.authentication.";

/// Begins the one that names the app's port.
pub const PORT: &str = "lambda-microvms.port.";

/// Beyond the service: of a client that wants to hear how its shell ended, and may want a command carried out in place of a
/// shell to type into. Whoever does not offer it sees nothing of either.
pub const SHELL: &str = "pilotlight.shell";
