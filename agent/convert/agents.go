package convert

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	toStderr  = "the log goes to standard error: the journal, or the log of the container, keeps it"
	tokenFrom = "the first that is set of KMS_TOKEN, KMS_SESSION_TOKEN, KMS_CONTAINER_AUTHORIZATION_TOKEN and the same with AWS says what it is, or names its file; without any, it is made in run/token of the state directory. " +
		"Applications that read %s need tokenFile: %[1]s"
	otherVariables = "only the variables of the token are looked at: for another one, set endpoint.tokenFile to the file that it names"
	maxTTL         = 168 * time.Hour
)

// listen sets the TCP address of the endpoint, which is on this host.
func (c *converter) listen(host string, port int) {
	c.out.in("endpoint").set("listen", net.JoinHostPort(host, strconv.Itoa(port)))
}

// headers sets the headers that carry the token.
func (c *converter) headers(n *node, texts []string) {
	for _, name := range texts {
		if !headerName.MatchString(name) {
			c.unfit(n, "a list of names of headers")
			return
		}
	}
	c.out.in("endpoint").set("headers", texts)
}

// tokenVariables notes that there are variables from which the agent takes no token.
func (c *converter) tokenVariables(n *node, names []string) {
	if slices.ContainsFunc(names, func(name string) bool { return !tokenVariable.MatchString(name) }) {
		c.note(c.file, n.line, n.key, otherVariables)
	}
}

var (
	// tokenVariable matches what config.TokenVariables has.
	tokenVariable = regexp.MustCompile(`^(KMS|AWS)_(TOKEN|SESSION_TOKEN|CONTAINER_AUTHORIZATION_TOKEN)$`)

	headerName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,62}$`)
	prefixForm = regexp.MustCompile(`^/([A-Za-z0-9_.-]+/)*$`)
)

// served are the rules of what both agents with a configuration in TOML have, by their own keys.
func (c *converter) served(ttl, size, headers, prefix, connections, transient string) rules {
	return rules{
		headers: c.texts(c.headers),
		prefix: c.text(func(n *node, text string) {
			if !prefixForm.MatchString(text) || len(text) < 2 {
				c.unfit(n, "a path such as /v1/, with a slash at both ends")
				return
			}
			c.out.in("endpoint").set("pathPrefix", text)
		}),
		connections: c.integer(1, 1000, func(_ *node, number int) { c.out.in("endpoint").set("maxConnections", number) }),
		size:        c.integer(1, 1000, func(_ *node, number int) { c.out.in("cache").set("maxEntries", number) }),
		ttl: c.duration(0, maxTTL, func(n *node, d time.Duration) {
			if d < time.Second {
				c.note(c.file, n.line, n.key, "is 1s, the least: a cache is always there, and refreshNow=true asks around it")
				d = time.Second
			}
			c.out.in("cache").set("ttl", d)
		}),
		transient: c.boolean(func(_ *node, yes bool) {
			if !yes { // true is the default of both
				c.out.in("cache").set("maxStale", raw("0s"))
			}
		}),
	}
}

// raw is a value of YAML as it is written.
type raw string

// awsAgent converts the configuration of the AWS Secrets Manager Agent.
func (c *converter) awsAgent(nodes []*node) {
	c.upstream()
	c.listen("127.0.0.1", 2773)
	c.out.in("endpoint").set("format", "aws")
	c.out.in("endpoint").set("headers", []string{"X-Aws-Parameters-Secrets-Token", "X-Vault-Token"})
	c.note(c.file, 0, "the token", fmt.Sprintf(tokenFrom, "/var/run/awssmatoken"))
	known := c.served("ttl_seconds", "cache_size", "ssrf_headers", "path_prefix", "max_conn", "ignore_transient_errors")
	known["log_level"] = c.level()
	known["log_to_file"] = c.without(toStderr)
	known["http_port"] = c.integer(1, 65535, func(_ *node, port int) { c.listen("127.0.0.1", port) })
	known["http_address"] = c.text(func(n *node, text string) {
		if ip, err := netip.ParseAddr(text); err != nil || !ip.IsLoopback() {
			c.note(c.file, n.line, n.key, "is left out: an address that is not loopback needs endpoint.allowNonLoopback and endpoint.tls")
		}
	})
	known["ssrf_env_variables"] = c.texts(c.tokenVariables)
	known["region"] = c.without("the secrets are not with AWS any more; --region names a region of Alibaba Cloud")
	known["validate_credentials"] = c.without("secretagent check --probe tries the credentials")
	known["credentials_file_path"] = c.without("credentials of AWS are of no use here; upstream.alibaba.credentials has those of Alibaba Cloud")
	known["prefetch"] = c.without("what stands under secrets in agent.yaml is fetched at the start: declare them there")
	c.each(nodes, "", known)
}

// kmsAgent converts the configuration of Alibaba's KMS Agent.
func (c *converter) kmsAgent(nodes []*node) error {
	c.listen("127.0.0.1", 2025)
	c.note(c.file, 0, "the token", fmt.Sprintf(tokenFrom, "/var/run/kmstoken"))
	endpoint := &mapping{}
	region := c.text(func(n *node, text string) {
		if !regionForm.MatchString(text) {
			c.unfit(n, "a region such as cn-hangzhou")
			return
		}
		endpoint.set("region", text)
	})
	host := c.text(func(n *node, text string) {
		text = strings.TrimPrefix(text, "https://")
		if !hostForm.MatchString(text) {
			c.unfit(n, "a host, with :port if need be")
			return
		}
		endpoint.set("host", text)
	})
	known := c.served("cache.ttl", "cache.size", "server.ssrfheaders", "server.pathprefix", "server.maxconn", "server.ignoretransienterrors")
	// The names below [Cache], [KMS] and [Log] are published on no page that says all of them.
	for _, name := range []string{"ttlseconds", "ttl_seconds", "cachettl"} {
		known["cache."+name] = known["cache.ttl"]
	}
	for _, name := range []string{"cachesize", "cache_size", "maxsize", "capacity"} {
		known["cache."+name] = known["cache.size"]
	}
	for _, name := range []string{"region", "regionid", "kmsregion"} {
		known["kms."+name] = region
	}
	for _, name := range []string{"endpoint", "kmsendpoint"} {
		known["kms."+name] = host
	}
	known["log.loglevel"], known["log.level"] = c.level(), c.level()
	for _, name := range []string{"logpath", "maxsize", "maxbackups", "maxage", "logtofile", "maxfilesize"} {
		known["log."+name] = c.without(toStderr)
	}
	known["cache.cachetype"] = c.without("there is one kind of cache, in memory; cache.sealed keeps an encrypted copy on disk")
	known["server.httpport"] = c.integer(1, 65535, func(_ *node, port int) { c.listen("127.0.0.1", port) })
	known["server.ssrfenvvariables"] = c.texts(c.tokenVariables)
	known["server.responsetype"] = c.choice(map[string]string{"0": "kms", "1": "aws", "2": "vault"}, func(word string) {
		c.out.in("endpoint").set("format", word)
	})
	c.each(nodes, "", known)
	if c.opts.Region != "" {
		endpoint = &mapping{}
		endpoint.set("region", c.opts.Region)
	}
	if len(endpoint.keys) == 0 {
		return &InputError{File: c.file, Reason: "names neither region nor endpoint of KMS: give --region, such as --region cn-hangzhou"}
	}
	c.out.in("upstream").in("alibaba").add("endpoints", endpoint)
	return nil
}

var (
	regionForm = regexp.MustCompile(`^[a-z]{2}-[a-z0-9-]{1,40}$`)
	hostForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,250}(:[0-9]{1,5})?$`)
)
