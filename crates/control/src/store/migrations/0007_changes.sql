-- Lines of the audit log about changes that a command made beside the server, written in the change's own transaction,
-- until a server has them in the log.
CREATE TABLE audit_lines (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    line     TEXT    NOT NULL
);
