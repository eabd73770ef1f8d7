package kms

import (
	"regexp"
	"slices"

	"secretagent/upstream"
)

// regions are those of the service that we know of. The list serves to find typing mistakes and nothing else: a
// region that is not in it is used all the same.
var regions = []string{
	"cn-qingdao", "cn-beijing", "cn-zhangjiakou", "cn-huhehaote", "cn-wulanchabu", "cn-hangzhou", "cn-shanghai",
	"cn-nanjing", "cn-fuzhou", "cn-wuhan-lr", "cn-shenzhen", "cn-heyuan", "cn-guangzhou", "cn-chengdu", "cn-hongkong",
	"cn-shanghai-finance-1", "cn-shenzhen-finance-1", "cn-beijing-finance-1", "cn-hangzhou-finance", "cn-north-2-gov-1",
	"ap-northeast-1", "ap-northeast-2", "ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-5", "ap-southeast-6",
	"ap-southeast-7", "ap-south-1", "us-east-1", "us-west-1", "na-south-1", "eu-central-1", "eu-west-1", "me-east-1", "me-central-1",
}

// MisspeltRegion returns the region that was probably meant by one that we do not know; not ok where none is
// like it. A name with another number is no typing mistake: new regions have such.
func MisspeltRegion(region string) (meant string, ok bool) {
	if slices.Contains(regions, region) {
		return "", false
	}
	meant, ok = upstream.Suggest(region, regions)
	return meant, ok && digits.ReplaceAllString(meant, "0") != digits.ReplaceAllString(region, "0")
}

var digits = regexp.MustCompile(`\d+`)
