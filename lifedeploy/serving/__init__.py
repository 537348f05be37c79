"""From an engine to a service: repositories for model servers, and what runs inside one."""
