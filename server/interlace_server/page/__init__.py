"""The pages: one file each, with a template of the same name; `site` puts them together."""
