"""The command line: parses, calls the library, prints, and turns faults into exit statuses."""
