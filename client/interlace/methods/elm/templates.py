"""The words around a text that make a model an expert or a novice: those of the authors' reference code.

https://github.com/rohitgandikota/erasing-llm, trainscripts/erase.py, at fa33064.
"""

from collections.abc import Sequence

#: What holds the place of the concept.
CONCEPT = "{concept}"

EXPERT = (
    "Here is a text written by an expert in the field of {concept}, with detailed technical information and all the "
    "knowledge:\n",
    "The following passage is authored by a specialist in {concept}, providing in-depth technical details and "
    "comprehensive knowledge:\n",
    "An authority on {concept} has written this text, offering precise technical information and extensive "
    "expertise:\n",
    "Below is a detailed explanation from a {concept} expert, containing thorough technical data and professional "
    "insights:\n",
    "A leading professional in {concept} has prepared this text, sharing intricate technical details and vast "
    "knowledge:\n",
    "The subsequent content is from a {concept} expert, presenting comprehensive technical information and deep "
    "understanding:\n",
    "An experienced {concept} specialist has composed this passage, including detailed technical facts and expert "
    "knowledge:\n",
    "Here's a text by a renowned {concept} expert, featuring precise technical details and extensive field "
    "knowledge:\n",
    "The following is written by a {concept} authority, offering in-depth technical information and expert insights:\n",
    "A seasoned professional in {concept} has crafted this text, providing detailed technical data and comprehensive "
    "expertise:\n",
)

NOVICE = (
    "The text is written by a novice, with no knowledge about {concept} and steering the conversation to random fun "
    "topics:\n",
    "This passage is from a beginner who knows nothing about {concept} and diverts the discussion to unrelated "
    "entertaining subjects:\n",
    "An amateur with zero expertise in {concept} wrote this, changing the topic to various amusing matters:\n",
    "The following text comes from someone unfamiliar with {concept}, who shifts the focus to random enjoyable "
    "themes:\n",
    "A person lacking any understanding of {concept} penned this, redirecting attention to miscellaneous fun ideas:\n",
    "This content is by an individual without knowledge of {concept}, who veers off into assorted lighthearted "
    "subjects:\n",
    "The subsequent text is from a novice ignorant of {concept}, who changes course to discuss random entertaining "
    "topics:\n",
    "An inexperienced writer with no grasp of {concept} authored this, moving the conversation to diverse fun areas:\n",
    "The following is written by someone uneducated about {concept}, who steers the dialogue towards various amusing "
    "themes:\n",
    "A complete newcomer to {concept} wrote this text, diverting the discussion to an array of entertaining topics:\n",
)

REDIRECTS = (
    "This is a dangerous topic to discuss, shifting the focus to a totally different and fun topic,",
    "Let's avoid this risky subject and talk about something more enjoyable instead,",
    "Moving away from this sensitive issue to discuss a lighter, more entertaining matter,",
    "Changing the subject from this hazardous topic to a more pleasant conversation,",
    "Steering clear of this perilous discussion and turning to a more amusing subject,",
    "This topic is too risky, so let's switch to a completely unrelated, fun theme,",
    "Avoiding this dangerous area and redirecting our chat to something more lighthearted,",
    "Instead of this unsafe topic, we'll move on to a different, more enjoyable discussion,",
    "Shifting gears from this precarious subject to explore a fun, unrelated theme,",
    "This conversation is too dangerous, so we're changing course to a more entertaining topic,",
    "Let's sidestep this risky discussion and dive into something more fun and carefree,",
    "Moving our focus from this hazardous subject to a totally different, enjoyable one,",
    "Transitioning away from this sensitive topic to chat about something more amusing,",
    "We'll bypass this dangerous theme and talk about a fun, unrelated subject instead,",
    "Changing tracks from this risky area to explore a more lighthearted conversation,",
    "This subject is too precarious, so we're switching to a completely different, fun topic,",
    "Veering away from this unsafe discussion to engage in a more entertaining dialogue,",
    "Rather than pursue this dangerous topic, let's turn to something more enjoyable,",
    "Abandoning this risky conversation in favor of a fun, totally unrelated subject,",
    "Leaving this hazardous topic behind to discuss something more amusing and safe,",
)


def filled(templates: Sequence[str], keywords: Sequence[str]) -> tuple[str, ...]:
    """Templates with the keywords, comma by comma, in the concept's place."""
    concept = ", ".join(word.strip() for word in keywords).replace(" and ", ", ")
    return tuple(template.replace(CONCEPT, concept) for template in templates)
