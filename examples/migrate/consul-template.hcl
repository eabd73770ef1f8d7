consul {
  address = "127.0.0.1:8500"
}

template {
  source      = "pgpass.ctmpl"
  destination = "out/pgpass"
  perms       = 0600
  command     = "true"
}
