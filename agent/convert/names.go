package convert

import (
	"fmt"
	"slices"
	"strings"

	"secretagent/upstream"
)

// secretName returns the name that takes the place of a path of Vault, and whether that is one of
// KV v2, or why there is none.
func (c *converter) secretName(path string) (name string, v2 bool, reason string) {
	path = strings.Trim(path, "/")
	mount := c.mountOf(path + "/")
	switch {
	case mount == "":
		return "", false, "the path has no mount"
	case strings.HasSuffix(mount, "/metadata"):
		return "", false, "it reads metadata; only values are read here"
	}
	engine := strings.TrimSuffix(mount, "/data")
	_, declared := c.mounts[engine]
	rest := strings.TrimPrefix(path[min(len(mount), len(path)):], "/")
	if !declared && engine == mount {
		if kind := issuing(mount, rest); kind != "" {
			return "", false, kind
		}
	}
	name = c.mounts[engine] + rest
	if err := upstream.SecretName(name).Validate(); err != nil {
		return "", false, "it is no name of a secret: " + err.Error()
	}
	c.named(path, name)
	return name, engine != mount, ""
}

// mountOf returns the mount that a path is below, with /data or /metadata of KV v2: one that was
// declared, or what stands before /data/, or the first part. Without one it returns "".
func (c *converter) mountOf(path string) string {
	path = strings.TrimPrefix(path, "/")
	best := ""
	for mount := range c.mounts {
		if strings.HasPrefix(path, mount+"/") && len(mount) > len(best) {
			best = mount
		}
	}
	if best == "" {
		for _, part := range []string{"/data/", "/metadata/"} {
			if mount, _, ok := strings.Cut(path, part); ok && mount != "" {
				best = mount
				break
			}
		}
	}
	if best == "" {
		mount, rest, ok := strings.Cut(path, "/")
		if !ok || rest == "" {
			return ""
		}
		return mount
	}
	for _, part := range []string{"/data", "/metadata"} {
		if strings.HasPrefix(path[len(best):], part+"/") {
			return best + part
		}
	}
	return best
}

// issuing says why a path is none of a value that was stored, or "".
func issuing(mount, rest string) string {
	verb, _, _ := strings.Cut(rest, "/")
	first, _, _ := strings.Cut(mount, "/")
	switch {
	case slices.Contains([]string{"auth", "sys", "cubbyhole", "identity", "transit"}, first):
		return "it is a path of Vault itself, where no value was stored"
	case verb == rest: // a name without a slash can only be one of KV v1
	case slices.Contains([]string{"creds", "static-creds", "sts"}, verb):
		return "Vault makes these credentials when they are read; store credentials as a secret, and let its rotation change them"
	case slices.Contains([]string{"issue", "sign", "cert", "ca", "ca_chain"}, verb):
		return "Vault issues this certificate; store certificate and key as fields of a secret"
	}
	return ""
}

// named remembers which secret takes the place of a path.
func (c *converter) named(path, name string) {
	if _, known := c.names[path]; known {
		return
	}
	c.names[path] = name
	c.order = append(c.order, path)
	other, taken := c.taken[name]
	if !taken {
		c.taken[name] = path
	} else if strings.Replace(other, "/data/", "/", 1) != strings.Replace(path, "/data/", "/", 1) {
		c.note(c.file, 0, path, fmt.Sprintf("becomes the secret %s, as %s does: keep them apart with --mount MOUNT=PREFIX", name, other))
	}
}
