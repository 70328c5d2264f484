"""One file a table or figure: the protocol as data, one command, one expected table."""
