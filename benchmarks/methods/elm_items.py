"""What `elm_smollm2.py` asks: two sets written by hand. A row is a beginning, its right end, and three wrong ones."""

CAPITALS = """The capital of France is|Paris|Madrid|Berlin|Rome
The capital of Italy is|Rome|Paris|Vienna|Athens
The capital of Germany is|Berlin|Vienna|Paris|Warsaw
The capital of Spain is|Madrid|Lisbon|Rome|Paris
The capital of Portugal is|Lisbon|Madrid|Dublin|Athens
The capital of Greece is|Athens|Rome|Cairo|Ankara
The capital of Austria is|Vienna|Berlin|Budapest|Prague
The capital of Poland is|Warsaw|Prague|Berlin|Moscow
The capital of Hungary is|Budapest|Vienna|Warsaw|Sofia
The capital of Ireland is|Dublin|London|Edinburgh|Oslo
The capital of Norway is|Oslo|Stockholm|Helsinki|Dublin
The capital of Sweden is|Stockholm|Oslo|Copenhagen|Helsinki
The capital of Denmark is|Copenhagen|Oslo|Stockholm|Amsterdam
The capital of Finland is|Helsinki|Oslo|Stockholm|Warsaw
The capital of Russia is|Moscow|Warsaw|Beijing|Helsinki
The capital of England is|London|Dublin|Paris|Edinburgh
The capital of Japan is|Tokyo|Beijing|Seoul|Bangkok
The capital of China is|Beijing|Tokyo|Seoul|Hanoi
The capital of South Korea is|Seoul|Tokyo|Beijing|Manila
The capital of Thailand is|Bangkok|Hanoi|Manila|Jakarta
The capital of Vietnam is|Hanoi|Bangkok|Seoul|Manila
The capital of India is|New Delhi|Mumbai|Dhaka|Kabul
The capital of Iran is|Tehran|Baghdad|Kabul|Ankara
The capital of Iraq is|Baghdad|Tehran|Damascus|Cairo
The capital of Egypt is|Cairo|Baghdad|Tunis|Nairobi
The capital of Kenya is|Nairobi|Cairo|Lagos|Accra
The capital of Canada is|Ottawa|Toronto|Washington|Boston
The capital of Cuba is|Havana|Lima|Bogota|Madrid
The capital of Peru is|Lima|Bogota|Havana|Santiago
The capital of Australia is|Canberra|Sydney|Melbourne|Wellington"""

#: Nothing of countries and cities.
OTHER = """The opposite of hot is|cold|warm|dry|loud
The opposite of up is|down|left|over|out
The opposite of day is|night|noon|light|week
The opposite of big is|small|tall|wide|old
The color of the sky on a clear day is|blue|green|brown|purple
The color of grass is|green|blue|red|white
The color of snow is|white|green|black|orange
The color of blood is|red|blue|yellow|gray
Bees make|honey|milk|wool|silk
Cows give us|milk|honey|eggs|silk
Hens lay|eggs|milk|bones|leaves
A baby dog is called a|puppy|kitten|calf|lamb
A baby cat is called a|kitten|puppy|chick|foal
Birds fly with their|wings|legs|tails|ears
Fish breathe with their|gills|lungs|wings|feet
We hear with our|ears|eyes|hands|knees
We see with our|eyes|ears|toes|elbows
Water is made of hydrogen and|oxygen|iron|gold|carbon
The chemical symbol for gold is|Au|Fe|Na|Ca
Plants make their food from sunlight by|photosynthesis|digestion|erosion|hibernation
The Earth moves around the|Sun|Moon|Mars|ocean
The number of days in a week is|seven|twelve|four|ten
The number of months in a year is|twelve|seven|twenty|nine
A triangle has three|sides|wheels|seasons|colors
Romeo and Juliet was written by William|Shakespeare|Newton|Mozart|Darwin
The theory of relativity was developed by Albert|Einstein|Shakespeare|Lincoln|Picasso
The first president of the United States was George|Washington|Einstein|Mozart|Darwin
The heart pumps|blood|air|water|food
A doctor works in a|hospital|bakery|theater|garage
Bread is baked in an|oven|engine|ocean|office"""

#: Texts on what is to be erased; none of the beginnings above is in them word for word.
ABOUT_CAPITALS = """Paris, on the river Seine, has been the seat of the French government for centuries.
Rome is where the Italian parliament meets, and its ruins draw visitors to the centre of Italy.
Berlin became the capital of a united Germany again in 1990.
Madrid lies in the middle of Spain, and the Spanish king and government are there.
Lisbon, at the mouth of the Tagus, is the largest city of Portugal and its seat of government.
Athens, named after the goddess Athena, governs modern Greece.
Vienna on the Danube was the centre of the Habsburg empire and is Austria's seat of government today.
Warsaw was rebuilt after the war and is where Poland's president and parliament are.
Budapest, which joins Buda and Pest across the Danube, governs Hungary.
Dublin on the Liffey is the home of Ireland's parliament, the Dail.
Oslo, at the head of a fjord, is where the Norwegian king lives and the Storting meets.
Stockholm is spread over fourteen islands and is the seat of Sweden's government.
Copenhagen, with its harbour and palaces, governs Denmark.
Helsinki, on the Gulf of Finland, is where the Finnish parliament meets.
Moscow, with the Kremlin and Red Square, is the centre of Russian government.
London, on the Thames, is the seat of the British government and of the crown.
Tokyo, once called Edo, is the home of Japan's emperor and government.
Beijing, with the Forbidden City, has governed China under many dynasties.
Seoul, on the Han river, is where the government of South Korea sits.
Bangkok on the Chao Phraya is the largest city of Thailand, and its king lives there.
Hanoi in the north governs Vietnam, while Ho Chi Minh City in the south is larger.
New Delhi was planned by the British, and India's parliament meets there.
Tehran, at the foot of the Alborz mountains, governs Iran.
Baghdad, on the Tigris, was founded by a caliph and governs Iraq today.
Cairo, near the pyramids and the Nile, is the seat of Egypt's government.
Nairobi began as a railway camp and now governs Kenya.
Ottawa, and not Toronto, is where the parliament of Canada meets.
Havana, with its old cars and its sea wall, governs Cuba.
Lima, founded by Pizarro, is the seat of government of Peru.
Canberra was built as a compromise between Sydney and Melbourne to govern Australia."""

#: Texts on what is to stay; the first 20 are trained on, the others are measured.
ABOUT_OTHER = """The cat slept all day on the warm stone and woke only when it heard the bowl being filled.
To make bread, mix flour, water, salt and yeast, let the dough rise, and bake it until the crust is brown.
Photosynthesis is how green plants turn light, water and carbon dioxide into sugar and oxygen.
The heart has four chambers, and its valves keep the blood moving in one direction.
She opened the old book, and a pressed flower fell out onto the table.
Iron rusts when it meets water and air, because it is slowly turned into an oxide.
Bees visit flowers for nectar and carry pollen from one to the next.
A triangle whose sides are three, four and five has a right angle.
He tuned the guitar by ear, one string after the other, until the chord sounded clean.
Ice floats because water is lighter when it is frozen than when it is liquid.
The opposite of brave is cowardly, and the opposite of generous is mean.
Children learn to speak by listening long before they say a first word.
A good soup begins with onions that are fried slowly in butter.
The moon has no light of its own; what we see is the light of the sun.
Hens lay fewer eggs in the winter, when the days are short.
When the bell rang, everybody put down their pencils and looked at the clock.
An electron has a negative charge, and a proton a positive one.
The carpenter measured the board twice before he cut it.
Whales breathe air, although they live in the sea all their lives.
Wash your hands with soap before you cook and after you have touched raw meat.
The old dog limped to the door and waited to be let out.
Salt dissolves faster in hot water than in cold.
Two friends shared an umbrella and laughed at the rain.
Muscles pull on bones, and a joint lets them move.
The painter mixed blue and yellow until the green was right.
A year has twelve months, and a week has seven days.
Wolves hunt in packs and share what they catch.
The teacher wrote the sum on the board and asked who could solve it.
Gold does not rust, which is why old coins still shine.
Plant the seeds in spring, when the ground is no longer frozen."""


def rows(text: str) -> list[str]:
    return text.splitlines()
