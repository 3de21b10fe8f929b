"""The report: one self-contained page that says what was found and how sure it is. It only reads files."""
