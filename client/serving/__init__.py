"""The profile in the tenant's application: HTTP, the Open Inference Protocol, and a page. Nothing leaves the site."""
