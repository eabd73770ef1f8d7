package kmsserver

import (
	"context"
	"strconv"

	"secretagent/upstream"
)

// Listings for keys that may use some secrets only. Such a key sees the same as if there
// were no other secrets: pages, counts and tokens are those of what it may use. The whole
// list of the backend is walked for that.

// maxWalked bounds the pages of the backend that one filtered listing may walk: 100,000
// secrets, or 200,000 tags.
const maxWalked = 1000

var errTooManyToFilter = &upstream.Error{Message: "there are too many entries to filter for this access key", Err: upstream.ErrLimitExceeded}

// listPermitted lists the secrets that the caller may use.
func listPermitted(ctx context.Context, c *call, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	if c.key.mayUseAll() {
		return c.manager.ListSecrets(ctx, in)
	}
	if err := in.Validate(); err != nil { // the pages that are asked for below are others
		return upstream.ListSecretsOutput{}, err
	}
	out := upstream.ListSecretsOutput{Page: in.Page.WithDefaults(10)}
	first, last := out.Page.Span()
	for number := 1; number <= maxWalked; number++ {
		in.Page = upstream.Page{Number: number, Size: upstream.MaxPageSize}
		walked, err := c.manager.ListSecrets(ctx, in)
		if err != nil {
			return upstream.ListSecretsOutput{}, err
		}
		for _, s := range walked.Secrets {
			if !c.key.mayUse(s.SecretName) {
				continue
			}
			if out.TotalCount >= first && out.TotalCount < last {
				out.Secrets = append(out.Secrets, s)
			}
			out.TotalCount++
		}
		if number*upstream.MaxPageSize >= walked.TotalCount || len(walked.Secrets) == 0 {
			return out, nil
		}
	}
	return upstream.ListSecretsOutput{}, errTooManyToFilter
}

// tagsPermitted lists the tags of secrets that the caller may use. Where names are given
// they are permitted ones already. The backend's own tokens are not passed on, since they
// may name a secret; the token is the number of rows that were given out before.
func tagsPermitted(ctx context.Context, c *call, in upstream.ListTagResourcesInput) (upstream.ListTagResourcesOutput, error) {
	if c.key.mayUseAll() || len(in.SecretNames) > 0 {
		return c.manager.ListTagResources(ctx, in)
	}
	first := 0
	if in.NextToken != "" {
		var err error
		if first, err = strconv.Atoi(in.NextToken); err != nil || first < 1 {
			return upstream.ListTagResourcesOutput{}, upstream.InvalidParameter("NextToken", "it is not one that ListTagResources has returned")
		}
		in.NextToken = ""
	}
	var out upstream.ListTagResourcesOutput
	seen := 0
	for range maxWalked {
		walked, err := c.manager.ListTagResources(ctx, in)
		if err != nil {
			return upstream.ListTagResourcesOutput{}, err
		}
		for _, row := range walked.Rows {
			if !c.key.mayUse(row.SecretName) {
				continue
			}
			if len(out.Rows) == upstream.TagRowsPerPage {
				out.NextToken = strconv.Itoa(first + len(out.Rows))
				return out, nil
			}
			if seen >= first {
				out.Rows = append(out.Rows, row)
			}
			seen++
		}
		if in.NextToken = walked.NextToken; in.NextToken == "" {
			return out, nil
		}
	}
	return upstream.ListTagResourcesOutput{}, errTooManyToFilter
}
