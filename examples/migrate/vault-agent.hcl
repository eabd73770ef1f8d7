vault {
  address = "https://vault.internal:8200"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "/etc/vault/role-id"
      secret_id_file_path = "/etc/vault/secret-id"
    }
  }
}

template {
  destination = "out/app.env"
  perms       = 0600
  contents    = <<EOF
{{- with secret "secret/data/app/db" -}}
DB_USER={{ .Data.data.username }}
DB_PASSWORD={{ .Data.data.password }}
{{- if .Data.data.options }}
DB_OPTIONS={{ .Data.data.options }}
{{- end }}
{{ end -}}
EOF
}
