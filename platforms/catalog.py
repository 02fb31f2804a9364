"""The ticketing platforms that there are, by their names in the API."""

from platforms import jira, opsgenie, pagerduty, servicenow, slack
from platforms.contract import Platform

PLATFORMS: dict[str, Platform] = {
    platform.name: platform
    for platform in (pagerduty.PLATFORM, jira.PLATFORM, servicenow.PLATFORM, opsgenie.PLATFORM, slack.PLATFORM)
}
