"""What the workshop's notebooks call: servers, clients, arithmetic, pictures and exercise checks."""
